//! What the OpenAPI document says of every route alike: who may ask, what a refusal looks like, which key repeats a request, how
//! lists are paged. Handlers describe only what is their own.

use super::ask::MAX_KEY;
use lorikeet_api::{
    ErrorEnvelope,
    envelope::{DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE},
};
use std::collections::BTreeSet;
use utoipa::{
    Number, OpenApi,
    openapi::{
        self, Content, ContentBuilder, ObjectBuilder, PathItem, Ref, RefOr, Required, Response, ResponseBuilder,
        Schema, Type,
        path::{Operation, Parameter, ParameterBuilder, ParameterIn},
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

/// To which the routes are added. A route that needs no token says `security(())`.
#[derive(OpenApi)]
#[openapi(
    info(title = "Lorikeet", description = "LoRA fine-tuning on your own GPUs.", license(name = "Apache-2.0")),
    components(schemas(ErrorEnvelope)),
    security(("token" = []))
)]
pub(super) struct Document;

/// The document with what its routes have in common.
pub(super) fn complete(mut document: openapi::OpenApi) -> openapi::OpenApi {
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    let keyless = components.schemas.iter().filter(|(_, schema)| needs_no_key(schema));
    let keyless: BTreeSet<String> = keyless.map(|(name, _)| Ref::from_schema_name(name).ref_location).collect();
    for item in document.paths.paths.values_mut() {
        let PathItem { get, post, patch, delete, head, .. } = item;
        for operation in [get, &mut *post, &mut *patch, &mut *delete].into_iter().flatten() {
            name(operation);
            spare_body(operation, &keyless);
            operation.parameters.iter_mut().flatten().for_each(bound_page);
            operation.responses.responses.iter_mut().for_each(describe);
            refuse(operation, ResponseBuilder::new().content("application/json", error()));
        }
        // What changes nothing, and what a signed link allows, needs no key.
        for operation in [post, patch, delete].into_iter().flatten().filter(|change| change.security.is_none()) {
            operation.parameters.get_or_insert_default().push(idempotency_key().into());
        }
        // An answer to HEAD has no body.
        if let Some(operation) = head {
            name(operation);
            refuse(operation, ResponseBuilder::new());
        }
    }
    document
}

/// Handlers of several resources have the same name, and a name is one operation's.
fn name(operation: &mut Operation) {
    let words: Vec<&str> = operation.tags.iter().flatten().chain(&operation.operation_id).map(String::as_str).collect();
    operation.operation_id = Some(words.join("_").replace(' ', "_"));
}

fn needs_no_key(schema: &RefOr<Schema>) -> bool {
    matches!(schema, RefOr::T(Schema::Object(object)) if object.required.is_empty())
}

/// No body at all is an object without keys.
fn spare_body(operation: &mut Operation, keyless: &BTreeSet<String>) {
    let Some(RefOr::T(body)) = &mut operation.request_body else { return };
    let is_keyless = |content: &RefOr<Content>| match content {
        RefOr::T(Content { schema: Some(RefOr::Ref(schema)), .. }) => keyless.contains(&schema.ref_location),
        RefOr::T(_) | RefOr::Ref(_) => false,
    };
    if body.content.values().all(is_keyless) {
        body.required = Some(Required::False);
    }
}

fn bound_page(parameter: &mut RefOr<Parameter>) {
    let RefOr::T(Parameter { name, schema: Some(RefOr::T(Schema::Object(number))), .. }) = parameter else { return };
    let (most, default) = match name.as_str() {
        "page" => (None, 1),
        "pageSize" => (Some(Number::from(MAX_PAGE_SIZE)), DEFAULT_PAGE_SIZE),
        _ => return,
    };
    (number.minimum, number.maximum, number.default) = (Some(1_u32.into()), most, Some(default.into()));
    // The derived one ends at half of what is taken.
    number.format = None;
}

/// The standard asks for a few words beside each status.
fn describe((status, response): (&String, &mut RefOr<Response>)) {
    let RefOr::T(Response { description, .. }) = response else { return };
    if description.is_empty() {
        let words = match status.as_str() {
            "201" => "It is made",
            "204" => "It is done",
            _ => "What was asked for",
        };
        words.clone_into(description);
    }
}

fn refuse(operation: &mut Operation, answer: ResponseBuilder) {
    let answer = answer.description("A refusal: `error.code` says which, and its status follows from that");
    operation.responses.responses.insert("default".to_owned(), answer.into());
}

fn error() -> Content {
    ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorEnvelope"))).build()
}

fn idempotency_key() -> Parameter {
    let text = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(MAX_KEY));
    ParameterBuilder::new()
        .name("Idempotency-Key")
        .parameter_in(ParameterIn::Header)
        .description(Some("What was done for this key is not done again within a day; the answer tells what was made as it is by then, without its secret"))
        .schema(Some(text))
        .build()
}
