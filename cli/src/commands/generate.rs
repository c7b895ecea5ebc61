//! `lorikeet generate`: what a model says, word by word on the terminal, or as one object.

mod words;

use super::local::{Local, failed};
use crate::{
    args::Generate as Args,
    failure::{Failure, chain},
    output::{Output, View},
};
use lorikeet_dataset::{Message, Role};
use lorikeet_trainer::{
    TrainError,
    generate::{Sampling, generate},
};
use serde::Serialize;
use std::{
    io::Read,
    time::{Duration, Instant},
};
use words::Words;

/// What was said.
#[derive(Debug, Serialize)]
struct Answer {
    /// The text before it, as the model got it.
    prompt: String,
    text: String,
    prompt_tokens: usize,
    tokens: usize,
    end: End,
    seconds: f64,
    tokens_per_second: f64,
}

/// Why nothing more came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum End {
    /// The model ended its turn or the text.
    Turn,
    /// As many tokens as were asked for, or as the model was made for.
    Length,
}

/// A person sees words as they come; a program gets one object.
pub(super) fn run(output: Output, args: &Args) -> Result<(), Failure> {
    let local = Local::open(&args.model)?;
    let text = prompt(&local, args)?;
    let tokens = local.tokenizer.encode(&text).map_err(|error| Failure::mistake(chain(&error)))?;
    let sampling = sampling(&local, tokens.len(), args)?;
    let end = local.tokenizer.eos_ids();
    let mut words = Words::new(&local.tokenizer);
    let (mut broken, began) = (Ok(()), Instant::now());
    let mut told = |token| {
        let part = if end.contains(&token) { String::new() } else { words.push(token) };
        if !output.is_json() && broken.is_ok() {
            broken = output.part(&part);
        }
    };
    let view = local.view();
    let said = generate(&local.model, view.as_ref(), &tokens, (&sampling, end), &mut told, &|| output.is_unread());
    let said = match said {
        // nobody reads the words any more
        Err(TrainError::Stopped) => return Ok(()),
        said => said.map_err(|error| failed("generate", &error))?,
    };
    broken?;
    let took = began.elapsed();
    let rest = words.finish();
    if !output.is_json() {
        output.part(&rest)?;
        output.line("")?;
        output.note(&pace(said.len(), took));
        return Ok(());
    }
    output.answer(&Answer {
        prompt: text,
        text: words.text(),
        prompt_tokens: tokens.len(),
        tokens: said.len(),
        end: if said.last().is_some_and(|last| end.contains(last)) { End::Turn } else { End::Length },
        seconds: took.as_secs_f64(),
        tokens_per_second: said.len() as f64 / took.as_secs_f64().max(1e-9),
    })
}

impl View for Answer {
    fn table(&self) -> String {
        self.text.clone()
    }
}

fn pace(tokens: usize, took: Duration) -> String {
    let seconds = took.as_secs_f64();
    format!("{tokens} tokens in {seconds:.1} s, {:.1} tokens/s", tokens as f64 / seconds.max(1e-9))
}

/// The text that the model goes on from.
fn prompt(local: &Local, args: &Args) -> Result<String, Failure> {
    if let Some(prompt) = &args.said.prompt {
        return Ok(local.tokenizer.opening(&given(prompt)?));
    }
    let message = given(args.said.chat.as_deref().unwrap_or_default())?;
    let system = args.system.iter().map(|text| Message::new(Role::System, text));
    let messages: Vec<_> = system.chain([Message::new(Role::User, &message)]).collect();
    local.tokenizer.render(&messages, true).map_err(|error| Failure::mistake(chain(&error)))
}

fn given(text: &str) -> Result<String, Failure> {
    if text != "-" {
        return Ok(text.to_owned());
    }
    let mut read = String::new();
    let failed = |error| Failure::mistake(format!("read standard input: {error}"));
    std::io::stdin().read_to_string(&mut read).map_err(failed)?;
    Ok(read)
}

/// No more than the model was made for.
fn sampling(local: &Local, prompt: usize, args: &Args) -> Result<Sampling, Failure> {
    let most = local.model.config().max_position_embeddings;
    if prompt == 0 {
        return Err(Failure::mistake("there is nothing to go on from: the prompt is empty"));
    }
    if prompt >= most {
        return Err(Failure::mistake(format!("the prompt takes {prompt} tokens, expected fewer than {most}")));
    }
    Ok(Sampling {
        temperature: args.temperature,
        top_k: args.top_k.map(|k| k as usize),
        top_p: args.top_p,
        seed: args.seed,
        max_tokens: (args.max_tokens as usize).min(most - prompt),
    })
}
