//! A generated brightrun-lora-v4 dataset with the traps of real ones.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

/// One dataset in both encodings.
pub(crate) struct Files {
    pub(crate) json: PathBuf,
    pub(crate) jsonl: PathBuf,
    pub(crate) _kept: Option<TempDir>,
}

/// A file with the counts of a known real one: 12 conversations, 89 pairs, 44 with a target.
pub(crate) fn generated() -> Files {
    let dir = tempfile::tempdir().expect("dir");
    let (json, jsonl) = (dir.path().join("whole.json"), dir.path().join("lines.jsonl"));
    let conversations: Vec<Value> = (0..12).map(conversation).collect();
    fs::write(&json, document(&conversations).to_string()).expect("writes");
    fs::write(&jsonl, lines(&conversations)).expect("writes");
    Files { json, jsonl, _kept: Some(dir) }
}

fn document(conversations: &[Value]) -> Value {
    json!({
        "training_file_metadata": {"file_name": "made", "format_spec": "brightrun-lora-v4", "total_conversations": 12,
            "total_training_pairs": 89},
        "consultant_profile": {"name": "nobody"},
        "conversations": conversations,
    })
}

fn lines(conversations: &[Value]) -> String {
    let mut text = json!({"_meta": {"file_name": "made", "total_pairs": 89, "version": "4.0.0"}}).to_string();
    for conversation in conversations {
        let uuid = &conversation["conversation_metadata"]["conversation_id"];
        for pair in conversation["training_pairs"].as_array().expect("pairs") {
            if !pair["target_response"].is_null() {
                let mut line = pair.clone();
                line["conversation_id"] = uuid.clone();
                text.push_str(&format!("\n{line}"));
            }
        }
    }
    text
}

/// Odd turns are the user's and have no target, even ones the model's; lengths 6, 8 and, once, 9 give 89 pairs.
fn conversation(index: usize) -> Value {
    let turns = match index {
        0..4 => 6,
        11 => 9,
        _ => 8,
    };
    let text = |turn: usize| {
        format!("Conversation {index}, turn {turn}: {}", "words about money and calm. ".repeat(turn + index))
    };
    let pairs: Vec<Value> = (1..=turns)
        .map(|turn| {
            let history: Vec<Value> = (1..turn)
                .map(|t| {
                    json!({"turn": t, "role": if t % 2 == 1 {"user"} else {"assistant"}, "content": text(t),
                    "emotional_state": {"primary": "calm", "intensity": 0.5}})
                })
                .collect();
            let has_target = turn % 2 == 0;
            json!({
                "id": format!("made_turn{turn}"), "conversation_id": "made", "turn_number": turn,
                "conversation_metadata": {"client_persona": "Someone", "persona_archetype": if index.is_multiple_of(2) { "planner" } else { "avoider" },
                    "emotional_arc": "Fear → Calm", "emotional_arc_key": "fear_to_calm", "training_topic_key": "savings"},
                "system_prompt": "You are calm.",
                "conversation_history": history,
                "current_user_input": text(if has_target { turn - 1 } else { turn }),
                "emotional_context": {"detected_emotions": {"primary": "calm"}},
                "target_response": has_target.then(|| text(turn)),
                "training_metadata": {"quality_score": if turn > 3 { json!(3) } else { json!(3.5) }, "human_reviewed": index == 11},
            })
        })
        .collect();
    json!({
        "conversation_metadata": {"conversation_id": format!("00000000-0000-4000-8000-{index:012}"), "total_turns": turns},
        "training_pairs": pairs,
    })
}
