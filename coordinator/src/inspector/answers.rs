//! What was found for jobs lately. Those who submit in a loop ask the same again and again, and each child reads a tokenizer and a
//! training file; who asks while the answer is on its way waits for it.

use super::{Data, InspectError};
use lorikeet_protocol::{id::Hash, inspect::Inspection, job::JobSpec};
use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::OnceCell;

/// An answer has some 200 KiB at most.
const KEPT: usize = 64;

/// See the module. Only plans are kept: what was refused may be mended by the next time.
#[derive(Debug, Clone, Default)]
pub(super) struct Answers(Arc<Mutex<Kept>>);

/// The newest last.
type Kept = VecDeque<(Hash, Arc<OnceCell<Inspection>>)>;

impl Answers {
    /// The answer to this question, asked if nobody has.
    pub(super) async fn get(
        &self,
        question: Hash,
        ask: impl Future<Output = Result<Inspection, InspectError>>,
    ) -> Result<Inspection, InspectError> {
        let place = self.place(question);
        let plan = async {
            match ask.await {
                Ok(plan @ Inspection::Job(_)) => Ok(plan),
                other => Err(other),
            }
        };
        place.get_or_try_init(|| plan).await.cloned().or_else(|other| other)
    }

    /// The answer, if it is known.
    pub(super) fn known(&self, question: Hash) -> Option<Inspection> {
        find(&self.lock(), question)?.get().cloned()
    }

    /// Everything: a base was read anew, and may be another.
    pub(super) fn forget(&self) {
        self.lock().clear();
    }

    fn place(&self, question: Hash) -> Arc<OnceCell<Inspection>> {
        let mut kept = self.lock();
        if let Some(place) = find(&kept, question) {
            return Arc::clone(place);
        }
        if kept.len() == KEPT {
            kept.pop_front();
        }
        let place = Arc::default();
        kept.push_back((question, Arc::clone(&place)));
        place
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find(kept: &Kept, question: Hash) -> Option<&Arc<OnceCell<Inspection>>> {
    kept.iter().find(|(asked, _)| *asked == question).map(|(_, place)| place)
}

/// Which question that is: where the files lie, and what is to be done with them. A dataset's place names its content, a base's does
/// not: see [`Answers::forget`]. The job's own name is nothing to it.
pub(super) fn question(base: &Path, (dataset, validation): Data<'_>, job: &JobSpec) -> Hash {
    let mut hasher = blake3::Hasher::new();
    for path in [Some(base), Some(dataset), validation] {
        let path = path.map_or(&[][..], |path| path.as_os_str().as_encoded_bytes());
        hasher.update(&(path.len() as u64).to_le_bytes()).update(path);
    }
    let asked = serde_json::to_vec(&(&job.task, &job.resources)).expect("a job spec is plain data");
    Hash(*hasher.update(&asked).finalize().as_bytes())
}
