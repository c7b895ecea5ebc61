//! `lorikeet dataset preview`: the first examples of a file as the model will see them, with what it learns marked.

use super::faultless;
use crate::{
    args::Supervised,
    commands::inspect::{self, dataset_format},
    failure::{Failure, chain},
    output::{
        Output, View,
        table::preview::{Marks, text},
    },
};
use lorikeet_dataset::{Encoder, Filters, Piece, RenderedSample, Tokenizer, preview};
use lorikeet_protocol::inspect::DatasetFormat;
use serde::Serialize;
use std::path::PathBuf;

/// What was asked for.
pub(super) struct Asked {
    pub(super) file: PathBuf,
    pub(super) base: PathBuf,
    pub(super) supervise: Supervised,
    pub(super) max_seq_length: u32,
}

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Preview {
    format: DatasetFormat,
    samples: Vec<Sample>,
    /// How people's eyes are told what is learnt.
    #[serde(skip)]
    marks: Marks,
}

/// One example.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Sample {
    conversation: String,
    turn: u32,
    tokens: u64,
    supervised_tokens: u64,
    cut_messages: u32,
    cut_tokens: u32,
    text: String,
    /// Stretches of the text that are learnt.
    spans: Vec<Span>,
    #[serde(skip)]
    pieces: Vec<Piece>,
}

/// From one character to before another, counted in Unicode scalar values.
#[derive(Debug, Serialize)]
struct Span {
    start: usize,
    end: usize,
}

/// Needs no server.
pub(super) fn run(output: Output, asked: &Asked) -> Result<(), Failure> {
    let tokenizer = Tokenizer::load(&asked.base).map_err(|error| Failure::mistake(chain(&error)))?;
    let encoder = Encoder {
        tokenizer: &tokenizer,
        supervise: asked.supervise.into(),
        max_seq_length: asked.max_seq_length as usize,
    };
    let found = preview(&asked.file, &Filters::default(), encoder).map_err(|error| Failure::mistake(chain(&error)))?;
    let marks = if output.has_colour() { Marks::Colour } else { Marks::Brackets };
    let samples = found.samples.into_iter().map(sample).collect();
    output.answer(&Preview { format: dataset_format(found.format), samples, marks })?;
    let faults: Vec<_> = found.faults.listed.into_iter().map(inspect::line_fault).collect();
    faultless(&asked.file, &faults, found.faults.count)
}

fn sample(sample: RenderedSample) -> Sample {
    let mut spans = Vec::new();
    let mut start = 0;
    for piece in &sample.pieces {
        let end = start + piece.text.chars().count();
        if piece.supervised {
            spans.push(Span { start, end });
        }
        start = end;
    }
    Sample {
        conversation: sample.key.conversation,
        turn: sample.key.turn,
        tokens: sample.tokens,
        supervised_tokens: sample.supervised_tokens,
        cut_messages: sample.cut.messages,
        cut_tokens: sample.cut.tokens,
        text: sample.pieces.iter().map(|piece| piece.text.as_str()).collect(),
        spans,
        pieces: sample.pieces,
    }
}

impl View for Preview {
    fn table(&self) -> String {
        let titled = self.samples.iter().enumerate().map(|(index, sample)| {
            let Sample { tokens, supervised_tokens, cut_messages, .. } = sample;
            let cut = if *cut_messages > 0 { format!(", {cut_messages} messages cut") } else { String::new() };
            let title = format!("── example {}: {tokens} tokens, {supervised_tokens} learnt{cut} ──", index + 1);
            let pieces = sample.pieces.iter().map(|piece| (piece.text.as_str(), piece.supervised));
            format!("{title}\n{}", text(pieces, self.marks))
        });
        titled.collect::<Vec<_>>().join("\n\n")
    }
}
