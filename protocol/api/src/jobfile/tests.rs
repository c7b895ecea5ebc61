//! The job file as people get it wrong, and as they get it right.
