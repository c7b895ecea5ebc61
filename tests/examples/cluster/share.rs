//! B4: Kueue's baseline generator: 15,000 jobs of three sizes from thirty queues over a few devices; how long all of it takes.

use crate::{Size, report::Report};

pub(crate) fn many_sizes(_size: Size, report: &mut Report) {
    report.row(
        "B4",
        "Kueue's baseline",
        "not measured: quotas with borrowing come with the platform".into(),
        "≤ 100 s",
        "–".into(),
    );
}
