//! Pages of lists.

use super::{App, ask::Params, failure::Failure};
use crate::history::Page;
use axum::{Json, RequestPartsExt, extract::FromRequestParts, http::request::Parts};
use lorikeet_api::{
    Envelope, FieldError, Pagination,
    envelope::{DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE},
};
use serde::Deserialize;
use std::sync::Arc;

/// A good answer.
pub(super) type Answered<T> = Result<Json<Envelope<T>>, Failure>;

/// An answer that is no list.
pub(super) fn one<T>(data: T) -> Answered<T> {
    Ok(Json(Envelope::one(data)))
}

/// Which page was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paging {
    page: u32,
    size: u32,
}

impl FromRequestParts<Arc<App>> for Paging {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let Params(Wish { page, page_size }) = parts.extract_with_state::<Params<Wish>, _>(app).await?;
        Self::new(page, page_size)
    }
}

/// What a list without filters may be asked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wish {
    page: Option<u32>,
    page_size: Option<u32>,
}

/// Part of a name, whatever its case.
#[derive(Debug, Deserialize)]
#[serde(from = "String")]
pub(super) struct Search(String);

impl From<String> for Search {
    fn from(part: String) -> Self {
        Self(part.to_lowercase())
    }
}

impl Search {
    /// Whether a name has it.
    pub(super) fn is_in(&self, name: &str) -> bool {
        name.to_lowercase().contains(&self.0)
    }
}

impl Paging {
    /// Checks what the query says.
    pub(super) fn new(page: Option<u32>, size: Option<u32>) -> Result<Self, Failure> {
        let paging = Self { page: page.unwrap_or(1), size: size.unwrap_or(DEFAULT_PAGE_SIZE) };
        let mut faults = Vec::new();
        if paging.page == 0 {
            faults.push(FieldError::new("page", 0, "1 or more"));
        }
        if !(1..=MAX_PAGE_SIZE).contains(&paging.size) {
            faults.push(FieldError::new("pageSize", paging.size, format!("1 to {MAX_PAGE_SIZE}")));
        }
        if faults.is_empty() { Ok(paging) } else { Err(Failure::fields(faults)) }
    }

    /// For the store.
    pub(super) fn rows(self) -> Page {
        Page { offset: (self.page as usize - 1).saturating_mul(self.size as usize), limit: self.size as usize }
    }

    /// The page of a list that is here as a whole.
    pub(super) fn cut<T>(self, rows: Vec<T>) -> Json<Envelope<Vec<T>>> {
        let (total, Page { offset, limit }) = (rows.len(), self.rows());
        self.answer(rows.into_iter().skip(offset).take(limit).collect(), total)
    }

    /// A page that the store has cut.
    pub(super) fn answer<T>(self, rows: Vec<T>, total: usize) -> Json<Envelope<Vec<T>>> {
        Json(Envelope::page(rows, self.place(total)))
    }

    /// Where it stands in a list of so many.
    pub(super) fn place(self, total: usize) -> Pagination {
        Pagination::new(self.page, self.size, total as u64)
    }
}
