//! A file's first examples as the model will see them, with what it learns marked; nothing behind them is read.

use std::ops::ControlFlow;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::encode::RenderedSample;
use crate::pipeline::check_filters;
use crate::read::{Item, read};
use crate::{DatasetError, Encoder, Faults, Filters, Format};

/// Examples shown.
const SAMPLES: usize = 3;

/// The beginning of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preview {
    /// What the file is.
    pub format: Format,
    /// Its first examples.
    pub samples: Vec<RenderedSample>,
    /// What is wrong before the last of them.
    pub faults: Faults,
}

/// Renders the first three examples of a file.
pub fn preview(path: &Path, filters: &Filters, encoder: Encoder<'_>) -> Result<Preview, DatasetError> {
    check_filters(path, filters)?;
    let (mut samples, mut faults) = (Vec::new(), Faults::default());
    let summary = read(path, &mut |item, _| {
        match item {
            Item::Record(record) if filters.admit(&record) => match encoder.sample(&record) {
                Ok(sample) => samples.push(sample),
                Err(fault) => faults.push(fault),
            },
            Item::Record(_) | Item::NoTarget(_) => {}
            Item::Fault(fault) => faults.push(fault),
        }
        if samples.len() < SAMPLES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(Preview { format: summary.format, samples, faults })
}
