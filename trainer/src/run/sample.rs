//! What the model answers on the way: the same messages at every evaluation, the likeliest token each time.

use lorikeet_dataset::{Message, Role, TokenizerError};

use super::Session;
use crate::TrainError;
use crate::event::{Event, Sample};
use crate::generate::greedy;

/// Enough to see which way it goes.
const MOST_TOKENS: usize = 64;

impl Session<'_, '_> {
    /// Answers every message; with early stopping too, by the state as it is now.
    pub(super) fn sample(&mut self) -> Result<(), TrainError> {
        for prompt in self.config.telling.sample_prompts.clone() {
            let text = self.in_memory(|session| session.answer(&prompt))?;
            self.tell(Event::Sample(Sample { step: self.run.state.step, prompt, text }))?;
        }
        Ok(())
    }

    fn answer(&self, prompt: &str) -> Result<String, TrainError> {
        let unusable = |error: TokenizerError| TrainError::Config {
            key: "training.sample_prompts",
            reason: format!("{prompt:?} cannot be asked: {error}"),
        };
        let tokens = self.tokenizer.prompt(&[Message::new(Role::User, prompt)]).map_err(unusable)?;
        let room = self.model.config().max_position_embeddings.saturating_sub(tokens.len()).min(MOST_TOKENS);
        let end = self.tokenizer.eos_ids();
        let view = self.run.view();
        let mut said = greedy(&self.model, view.as_ref(), &tokens, room, end, &|| self.stop.is_asked())?;
        said.retain(|token| !end.contains(token));
        self.tokenizer.decode(&said).map_err(unusable)
    }
}
