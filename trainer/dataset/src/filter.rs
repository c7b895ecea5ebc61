//! Which records are used at all: `[data]` of a job file, for formats that mark their pairs.

use serde::{Deserialize, Serialize};

use crate::Record;

/// Every filter that is set has to admit a record. A mark that a record lacks admits it nowhere.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Filters {
    /// The lowest score.
    pub quality_min: Option<f64>,
    /// Tiers, by name.
    pub tiers: Vec<String>,
    /// Whether a person must have looked at it, or must not.
    pub human_reviewed: Option<bool>,
    /// Personas, by key or name.
    pub personas: Vec<String>,
    /// Emotional arcs, by key or name.
    pub arcs: Vec<String>,
    /// Topics, by key or name.
    pub topics: Vec<String>,
}

impl Filters {
    /// Nothing is left out.
    pub fn is_empty(&self) -> bool {
        *self == Filters::default()
    }

    /// Whether a record is used.
    pub fn admit(&self, record: &Record) -> bool {
        let marks = &record.marks;
        self.quality_min.is_none_or(|least| marks.quality.is_some_and(|quality| quality >= least))
            && self.human_reviewed.is_none_or(|wanted| marks.human_reviewed == Some(wanted))
            && among(&self.tiers, marks.tier.as_slice())
            && among(&self.personas, &marks.personas)
            && among(&self.arcs, &marks.arcs)
            && among(&self.topics, &marks.topics)
    }
}

/// An empty list admits everything; case makes no difference.
fn among(wanted: &[String], names: &[String]) -> bool {
    let named = |wanted: &String| names.iter().any(|name| name.to_lowercase() == wanted.to_lowercase());
    wanted.is_empty() || wanted.iter().any(named)
}
