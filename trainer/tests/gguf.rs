//! GGUF files of a golden, against what they should say: facts and tensors read back by a reader of the test's own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lorikeet_trainer::gguf::{ModelOptions, Type, write_adapter, write_model};
use lorikeet_trainer::lora::{self, Site};
use lorikeet_trainer::model::Model;

#[test]
fn an_adapter_has_llama_cpps_names_shapes_and_rows() {
    let (file, base, adapter) = adapter("untied_all_f32");
    assert_eq!(file.text("general.architecture"), "llama");
    assert_eq!((file.text("general.type"), file.text("adapter.type")), ("adapter", "lora"));
    let (layout, params) = lora::open(&adapter, Model::load(&base).expect("a base").config()).expect("an adapter");
    assert_eq!(file.number("adapter.lora.alpha"), layout.config().alpha);
    assert_eq!(file.tensors.len(), 2 * layout.entries().len());
    let entry = layout.entry(Site::Block(1, lorikeet_plan::Module::QProj)).expect("adapted");
    let (shape, b) = &file.tensors["blk.1.attn_q.weight.lora_b"];
    assert_eq!(shape, &[entry.rank as u64, entry.out_features as u64]);
    let heads = Model::load(&base).expect("a base").config().num_attention_heads;
    let (width, half) = (entry.out_features / heads, entry.out_features / heads / 2);
    for (head, i, j) in (0..heads).flat_map(|head| (0..half).flat_map(move |i| [0, 1].map(|j| (head, i, j)))) {
        let (ours, theirs) = (head * width + j * half + i, head * width + 2 * i + j);
        let row = |of: &[f32], row: usize| of[row * entry.rank..(row + 1) * entry.rank].to_vec();
        assert_eq!(row(b, theirs), row(&params[entry.b.clone()], ours), "head {head}, pair {i}, half {j}");
    }
    let (_, a) = &file.tensors["blk.1.attn_q.weight.lora_a"];
    assert_eq!(a, &params[entry.a.clone()]);
}

#[test]
fn every_scale_is_kept_where_the_file_has_one_alpha_for_all() {
    for case in ["patterns_rslora", "plus_ends", "qwen3", "phi3", "gemma2"] {
        let (file, base, dir) = adapter(case);
        let (layout, params) = lora::open(&dir, Model::load(&base).expect("a base").config()).expect("an adapter");
        let alpha = file.number("adapter.lora.alpha") as f32;
        for entry in layout.entries() {
            let name = match entry.site {
                Site::Embedding => "token_embd".to_owned(),
                Site::Head => "output".to_owned(),
                Site::Block(layer, module) => format!("blk.{layer}.{}", known(module.name())),
            };
            let (shape, b) = &file.tensors[&format!("{name}.weight.lora_b")];
            let rank = shape[0] as f32;
            let sum = |x: &[f32]| x.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
            let (theirs, ours) =
                (f64::from(alpha / rank) * sum(b), f64::from(entry.scale) * sum(&params[entry.b.clone()]));
            assert!((theirs - ours).abs() <= 1e-5 * ours, "{case} {name}: {theirs} and {ours}");
        }
    }
    let (file, _, dir) = adapter("patterns_rslora");
    let config = lora::read_config(&dir).expect("settings");
    assert!(config.rslora && file.number("adapter.lora.alpha") > 0.0);
}

#[test]
fn a_whole_model_says_its_shape_and_holds_merged_rows() {
    let place = tempfile::tempdir().expect("a directory");
    for (case, family) in [("tied_qv_llama3_bf16", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")] {
        let (base, out) = (with_tokenizer(case, place.path()), place.path().join(format!("{case}.gguf")));
        let options = ModelOptions { stored: Some(Type::F32), name: case.into(), pre_tokenizer: None };
        write_model(&base, Some(&golden(case).join("adapter")), &out, &options, &|| false).expect("written");
        let file = File::read(&out);
        let model = Model::load(&base).expect("a base");
        let config = model.config();
        assert_eq!(file.text("general.architecture"), family);
        assert_eq!(file.number(&format!("{family}.block_count")), config.num_hidden_layers as f64);
        assert_eq!(file.number(&format!("{family}.attention.head_count_kv")), config.num_key_value_heads as f64);
        assert_eq!(file.number(&format!("{family}.rope.freq_base")), config.ropes[0].theta);
        assert_eq!(file.number("tokenizer.ggml.tokens"), config.vocab_size as f64);
        assert_eq!(file.text("tokenizer.ggml.model"), "gpt2");
        assert!(file.text("tokenizer.chat_template").contains("im_start"));
        let scaled = case.contains("llama3");
        assert_eq!(file.tensors.contains_key("output.weight"), !config.tie_word_embeddings);
        assert_eq!(file.tensors.contains_key("rope_freqs.weight"), scaled);
        if scaled {
            let divisors = &file.tensors["rope_freqs.weight"].1;
            // of four pairs the slowest is divided by the whole factor
            assert!(divisors.len() == config.head_dim / 2 && divisors.iter().all(|x| *x >= 1.0) && divisors[3] == 4.0);
        }
        let (shape, _) = &file.tensors["blk.0.ffn_down.weight"];
        assert_eq!(shape, &[config.intermediate_size as u64, config.hidden_size as u64]);
    }
    let windows = (&golden("qwen2").join("base"), "only some layers have a window");
    let error = write_model(windows.0, None, &place.path().join("x.gguf"), &ModelOptions::default(), &|| false);
    assert!(error.expect_err("refused").to_string().contains(windows.1));
    for (case, words) in [("gemma2", "Gemma2ForCausalLM"), ("llama_dynamic_bias", "changes with the length")] {
        let base = with_tokenizer(case, place.path());
        let options = ModelOptions::default();
        let error = write_model(&base, None, &place.path().join("x.gguf"), &options, &|| false)
            .expect_err("refused")
            .to_string();
        assert!(error.contains(words), "{error}");
    }
    assert!(!place.path().join("x.gguf").exists());
}

#[test]
fn whoever_stops_it_leaves_nothing() {
    let [bases, place] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let base = with_tokenizer("qwen3", bases.path());
    let stopped = write_model(&base, None, &place.path().join("x.gguf"), &ModelOptions::default(), &|| true);
    assert!(matches!(stopped, Err(lorikeet_trainer::TrainError::Stopped)), "{stopped:?}");
    assert!(fs::read_dir(place.path()).expect("read").next().is_none());
}

#[test]
fn what_an_adapter_file_cannot_hold_is_refused() {
    let place = tempfile::tempdir().expect("a directory");
    let case = golden("dora");
    let error = write_adapter(&case.join("base"), &case.join("adapter"), &place.path().join("x.gguf"), Type::F32);
    assert!(error.expect_err("refused").to_string().contains("DoRA"));
    assert!(fs::read_dir(place.path()).expect("read").next().is_none());
}

fn known(module: &str) -> &str {
    match module {
        "q_proj" => "attn_q",
        "k_proj" => "attn_k",
        "v_proj" => "attn_v",
        "o_proj" => "attn_output",
        "qkv_proj" => "attn_qkv",
        "gate_proj" => "ffn_gate",
        "down_proj" => "ffn_down",
        _ => "ffn_up",
    }
}

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(case)
}

fn adapter(case: &str) -> (File, PathBuf, PathBuf) {
    let place = tempfile::tempdir().expect("a directory");
    let [base, adapter] = ["base", "adapter"].map(|part| golden(case).join(part));
    let out = place.path().join("a.gguf");
    write_adapter(&base, &adapter, &out, Type::F32).expect("written");
    (File::read(&out), base, adapter)
}

/// A golden's base has weights alone; its vocabulary is smaller than bytes are many, so the tokenizer is cut to it.
fn with_tokenizer(case: &str, place: &Path) -> PathBuf {
    let base = place.join(case);
    lorikeet_dataset::write_byte_tokenizer(&base).expect("a tokenizer");
    for entry in fs::read_dir(golden(case).join("base")).expect("read") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, base.join(path.file_name().expect("a name"))).expect("copied");
    }
    let config = base.join("config.json");
    let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&config).expect("read")).expect("JSON");
    if case == "qwen2" {
        // the golden has a window in some layers, which is refused
        text["use_sliding_window"] = false.into();
        text.as_object_mut().expect("an object").remove("layer_types");
        fs::write(&config, text.to_string()).expect("written");
    }
    let rows = Model::load(&base).expect("a base").config().vocab_size as u64;
    let path = base.join("tokenizer.json");
    let mut file: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
    let vocab = file["model"]["vocab"].as_object_mut().expect("a vocabulary");
    vocab.retain(|_, id| id.as_u64().is_some_and(|id| id < rows));
    fs::write(path, file.to_string()).expect("written");
    base
}

/// A GGUF file, read as its description says.
struct File {
    texts: BTreeMap<String, String>,
    /// Numbers, and how many items arrays have.
    numbers: BTreeMap<String, f64>,
    /// Shapes as the file has them, and numbers in f32.
    tensors: BTreeMap<String, (Vec<u64>, Vec<f32>)>,
}

impl File {
    fn read(path: &Path) -> File {
        let bytes = fs::read(path).expect("read");
        let mut at = Reader { bytes: &bytes, at: 0 };
        assert_eq!((at.take(4), at.u32()), (&b"GGUF"[..], 3));
        let (tensors, facts) = (at.u64(), at.u64());
        let mut file = File { texts: BTreeMap::new(), numbers: BTreeMap::new(), tensors: BTreeMap::new() };
        for _ in 0..facts {
            let name = at.text();
            let kind = at.u32();
            file.fact(name, kind, &mut at);
        }
        let places: Vec<_> = (0..tensors)
            .map(|_| {
                let name = at.text();
                let shape: Vec<u64> = (0..at.u32()).map(|_| at.u64()).collect();
                assert_eq!(at.u32(), 0, "f32");
                (name, shape, at.u64() as usize)
            })
            .collect();
        let data = at.at.next_multiple_of(32);
        for (name, shape, offset) in places {
            let len = shape.iter().product::<u64>() as usize;
            let numbers =
                bytes[data + offset..][..4 * len].as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four));
            assert!(file.tensors.insert(name, (shape, numbers.collect())).is_none());
        }
        file
    }

    fn fact(&mut self, name: String, kind: u32, at: &mut Reader<'_>) {
        match kind {
            4 => _ = self.numbers.insert(name, at.u32().into()),
            6 => _ = self.numbers.insert(name, f32::from_bits(at.u32()).into()),
            7 => _ = self.numbers.insert(name, at.take(1)[0].into()),
            8 => _ = self.texts.insert(name, at.text()),
            9 => {
                let (of, len) = (at.u32(), at.u64());
                (0..len).for_each(|_| match of {
                    8 => drop(at.text()),
                    5 | 6 => _ = at.u32(),
                    other => panic!("an array of {other}"),
                });
                self.numbers.insert(name, len as f64);
            }
            other => panic!("{name} is a {other}"),
        }
    }

    fn text(&self, name: &str) -> &str {
        &self.texts[name]
    }

    fn number(&self, name: &str) -> f64 {
        self.numbers[name]
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        self.at += len;
        &self.bytes[self.at - len..self.at]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().expect("four"))
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().expect("eight"))
    }

    fn text(&mut self) -> String {
        let len = self.u64() as usize;
        String::from_utf8(self.take(len).to_vec()).expect("UTF-8")
    }
}
