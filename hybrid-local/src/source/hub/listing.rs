//! What the hub says that a model has, and what of it is wanted.

use hybrid_core::{Error, FileName, Result};
use serde::Deserialize;

use super::{OPERATION, Promised};
use crate::source::{
    cache::{ADAPTER, ADAPTER_WEIGHTS, INDEX, MODULES, WEIGHTS, one_of_several},
    name::is_commit,
};

/// What loaders read beside weights.
const BESIDE: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    MODULES,
];

/// A commit with its files.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    pub(super) sha: String,
    #[serde(default)]
    siblings: Vec<File>,
}

/// A file of a commit.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct File {
    pub(super) rfilename: String,
    size: Option<u64>,
    /// Git's SHA-1.
    blob_id: Option<String>,
    lfs: Option<Large>,
}

#[derive(Debug, Deserialize)]
struct Large {
    sha256: String,
    size: u64,
}

/// Files to fetch.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) beside: Vec<&'a File>,
    pub(super) weights: Vec<&'a File>,
    /// Whether there are more weights, in the files that the index names, which is among those beside.
    pub(super) sharded: bool,
    /// Whether the one file is the model.
    pub(super) alone: bool,
}

impl Listing {
    /// # Errors
    /// `Corrupt` if the bytes are no listing.
    pub(super) fn read(bytes: &[u8]) -> Result<Self> {
        let listing: Self = serde_json::from_slice(bytes).map_err(|error| {
            Error::corrupt(OPERATION, "the hub's listing cannot be read; is HF_ENDPOINT a hub?").with_source(error)
        })?;
        if !is_commit(&listing.sha) {
            return Err(Error::corrupt(OPERATION, "the hub's listing names no commit").with("sha", &listing.sha));
        }
        Ok(listing)
    }

    /// The files that a loader reads, or the one that is wanted.
    ///
    /// # Errors
    /// `NotFound` and `Unsupported` that say what there is instead.
    pub(super) fn wanted(&self, file: Option<&str>) -> Result<Wanted<'_>> {
        let find = |name: &str| self.siblings.iter().find(|file| file.rfilename == name);
        if let Some(name) = file {
            return self.one(name);
        }
        let with_texts = |weights: Vec<_>, more: &[&'static str]| {
            let names = BESIDE.iter().chain(more);
            let steps = self.siblings.iter().filter(|file| is_step(&file.rfilename) && !is_weights(&file.rfilename));
            Wanted {
                beside: names.filter_map(|name| find(name)).chain(steps).collect(),
                weights,
                sharded: false,
                alone: false,
            }
        };
        let all = |fits: &dyn Fn(&str) -> bool| -> Vec<&File> {
            self.siblings.iter().filter(|file| fits(&file.rfilename)).collect()
        };
        // As in a folder: one file, else several by their index.
        let mut weights: Vec<&File> = find(WEIGHTS).into_iter().collect();
        let sharded = weights.is_empty() && find(INDEX).is_some();
        let mut more: &[&str] = if sharded { &[INDEX] } else { &[] };
        // An adapter, as PEFT or mlx-lm keeps it; or a step of sentence-transformers with weights of its own.
        if weights.is_empty() && !sharded && find(ADAPTER).is_some() {
            (weights, more) = (ADAPTER_WEIGHTS.into_iter().filter_map(find).collect(), &[ADAPTER]);
        }
        weights.extend(all(&|name| is_step(name) && is_weights(name)));
        if sharded || !weights.is_empty() {
            return Ok(Wanted { sharded, ..with_texts(weights, more) });
        }
        let blocks = all(&|name| name.to_ascii_lowercase().ends_with(".gguf") && !name.contains('/'));
        if let [one] = blocks[..] {
            return Ok(Wanted { beside: Vec::new(), weights: vec![one], sharded: false, alone: true });
        }
        let error = if !blocks.is_empty() {
            one_of_several(&blocks.iter().map(|file| file.rfilename.clone()).collect::<Vec<_>>())
        } else {
            let pickled = ["bin", "pt", "pth", "ckpt"];
            let pickled = self.siblings.iter().any(|file| pickled.contains(&extension(&file.rfilename)));
            let message = match pickled {
                true => "the model has pickled weights alone, which are not read; choose one with safetensors or GGUF",
                false => "the model has neither safetensors nor GGUF files",
            };
            Error::unsupported(OPERATION, message)
        };
        Err(error.with("commit", &self.sha))
    }

    /// The files that an index names.
    ///
    /// # Errors
    /// `Corrupt` that names one that the commit lacks, and if the index names none at all.
    pub(super) fn shards(&self, names: &[String]) -> Result<Vec<&File>> {
        let lacks = |message: &'static str| Error::corrupt(OPERATION, message).with("commit", &self.sha);
        if names.is_empty() {
            return Err(lacks("the index of the weights names no files").with("file", INDEX));
        }
        let find = |name: &String| self.siblings.iter().find(|file| file.rfilename == *name);
        let found = names.iter().map(|name| {
            find(name)
                .ok_or_else(|| lacks("the index of the weights names a file that the commit lacks").with("file", name))
        });
        found.collect()
    }

    fn one(&self, name: &str) -> Result<Wanted<'_>> {
        if !["gguf", "safetensors", "json", "jinja"].contains(&&*extension(name).to_ascii_lowercase()) {
            let message = "only GGUF, Safetensors, JSON and Jinja are fetched";
            return Err(Error::unsupported(OPERATION, message).with("file", name));
        }
        let found = self.siblings.iter().find(|file| file.rfilename == name).ok_or_else(|| {
            let alike = self.siblings.iter().filter(|file| extension(&file.rfilename) == extension(name));
            let alike: Vec<&str> = alike.map(|file| &*file.rfilename).collect();
            Error::not_found(OPERATION, "the commit has no such file")
                .with("file", name)
                .with("commit", &self.sha)
                .with("files", alike.join(", "))
        })?;
        Ok(Wanted { beside: Vec::new(), weights: vec![found], sharded: false, alone: true })
    }
}

impl File {
    /// Its name, which stays below a folder.
    pub(super) fn name(&self) -> Result<FileName> {
        FileName::new(&*self.rfilename)
            .map_err(|error| Error::corrupt(OPERATION, "the hub's listing has a name that is none").with_source(error))
    }

    /// The digest and the size that the listing promises, if it does.
    ///
    /// # Errors
    /// `Corrupt` if the digest is none.
    pub(super) fn promised(&self) -> Result<Option<(Promised, u64)>> {
        let (digest, size) = match (&self.lfs, &self.blob_id) {
            (Some(large), _) => (&large.sha256, Some(large.size)),
            (None, Some(id)) => (id, self.size),
            (None, None) => return Ok(None),
        };
        let promised = Promised::parse(digest).ok_or_else(|| {
            Error::corrupt(OPERATION, "the hub's listing has a digest that is none").with("found", digest)
        })?;
        Ok(size.map(|size| (promised, size)))
    }
}

/// Whether a file belongs to a step of sentence-transformers, which keeps it in a numbered folder.
fn is_step(name: &str) -> bool {
    name.split_once('/').is_some_and(|(folder, file)| {
        let numbered = folder.split_once('_').is_some_and(|(number, _)| number.parse::<u8>().is_ok());
        numbered && (file == WEIGHTS || !file.contains('/') && extension(file) == "json")
    })
}

fn is_weights(name: &str) -> bool {
    extension(name) == "safetensors"
}

fn extension(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(_, extension)| extension)
}

#[cfg(test)]
mod tests {
    use hybrid_core::ErrorKind;
    use serde_json::json;

    use super::*;

    fn wanted(names: &[&str], file: Option<&str>) -> Result<(Vec<String>, Vec<String>, bool)> {
        let siblings: Vec<_> = names.iter().map(|name| json!({"rfilename": name})).collect();
        let listing = json!({"sha": "0".repeat(40), "siblings": siblings}).to_string();
        let listing = Listing::read(listing.as_bytes())?;
        let Wanted { beside, weights, alone, sharded } = listing.wanted(file)?;
        assert_eq!(sharded, beside.iter().any(|file| file.rfilename == INDEX));
        let [beside, weights] =
            [beside, weights].map(|files| files.iter().map(|file| file.rfilename.clone()).collect());
        Ok((beside, weights, alone))
    }

    #[track_caller]
    fn check(names: &[&str], file: Option<&str>, beside: &[&str], weights: &[&str]) {
        let (found_beside, found, _) = wanted(names, file).unwrap();
        assert_eq!(found_beside, beside);
        assert_eq!(found, weights);
    }

    #[test]
    fn what_loaders_read_is_taken_and_nothing_else() {
        let names = [
            "README.md",
            "config.json",
            "tokenizer.json",
            "vocab.json",
            "chat_template.jinja",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "consolidated.safetensors",
            "pytorch_model.bin",
            "onnx/config.json",
            "1_Pooling/config.json",
            "original/params.json",
            "x-q4.gguf",
            "run.py",
        ];
        let texts = [
            "config.json",
            "tokenizer.json",
            "chat_template.jinja",
            "model.safetensors.index.json",
            "1_Pooling/config.json",
        ];
        check(&names, None, &texts, &[]);
        let whole = ["config.json", "model.safetensors", "model-00001-of-00001.safetensors", INDEX];
        check(&whole, None, &whole[..1], &whole[1..2]);
        let nested = [
            "modules.json",
            "0_Transformer/config.json",
            "0_Transformer/model.safetensors",
            "2_Dense/pytorch_model.bin",
        ];
        check(&nested, None, &nested[..2], &nested[2..3]);
        let adapter = ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "adapter_model.bin"];
        check(&adapter, None, &["tokenizer.json", "adapter_config.json"], &adapter[1..2]);
        check(&names, Some("x-q4.gguf"), &[], &["x-q4.gguf"]);
        assert!(wanted(&["config.json", "a.gguf"], None).unwrap().2, "a file that is the model itself");
    }

    #[test]
    fn the_files_of_several_are_those_that_the_index_names() {
        let names = [INDEX, "model.safetensors-00001-of-00001.safetensors", "model-00001-of-00009.safetensors"];
        let siblings: Vec<_> = names.iter().map(|name| json!({"rfilename": name})).collect();
        let listing = json!({"sha": "0".repeat(40), "siblings": siblings}).to_string();
        let listing = Listing::read(listing.as_bytes()).unwrap();
        let shards = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            listing.shards(&names).map(|files| files.iter().map(|file| file.rfilename.clone()).collect::<Vec<_>>())
        };
        assert_eq!(shards(&names[1..2]).unwrap(), names[1..2]);
        let error = shards(&["model-00001-of-00002.safetensors"]).unwrap_err();
        assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("00002"), "{error}");
        assert_eq!(shards(&[]).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn what_there_is_instead_is_told() {
        let refused = |names: &[&str], file: Option<&str>, kind: ErrorKind, named: &str| {
            let error = wanted(names, file).unwrap_err();
            assert!(error.kind() == kind && error.to_string().contains(named), "{named}: {error}");
        };
        use ErrorKind::{NotFound, Unsupported};
        refused(&["a.gguf", "b.gguf"], None, Unsupported, "a.gguf, b.gguf");
        refused(&["pytorch_model.bin", "config.json"], None, Unsupported, "pickled");
        refused(&["config.json"], None, Unsupported, "neither");
        refused(&["pytorch_model.bin"], Some("pytorch_model.bin"), Unsupported, "only GGUF");
        refused(&["a.gguf", "b.gguf"], Some("y.gguf"), NotFound, "a.gguf, b.gguf");
    }

    #[test]
    fn a_listing_that_is_none_is_corrupt() {
        for bad in ["", "{}", "[]", r#"{"sha": "main", "siblings": []}"#, r#"{"sha": "../../x", "siblings": []}"#] {
            assert_eq!(Listing::read(bad.as_bytes()).unwrap_err().kind(), ErrorKind::Corrupt, "{bad}");
        }
        let file = |value: serde_json::Value| serde_json::from_value::<File>(value).unwrap();
        let git = file(json!({"rfilename": "a", "size": 3, "blobId": "0".repeat(40)}));
        assert_eq!(git.promised().unwrap(), Some((Promised::Git("0".repeat(40)), 3)));
        let lfs = json!({"sha256": "1".repeat(64), "size": 3, "pointerSize": 9});
        let large = file(json!({"rfilename": "a", "size": 9, "blobId": "0".repeat(40), "lfs": lfs}));
        assert_eq!(large.promised().unwrap(), Some((Promised::Sha256("1".repeat(64)), 3)));
        assert_eq!(file(json!({"rfilename": "a"})).promised().unwrap(), None);
        let digest = file(json!({"rfilename": "a", "size": 3, "blobId": "../../../../../../../../../../../../xx"}));
        assert_eq!(digest.promised().unwrap_err().kind(), ErrorKind::Corrupt);
        for name in ["../a", "/a", "a//b", "a\\b"] {
            assert_eq!(file(json!({"rfilename": name})).name().unwrap_err().kind(), ErrorKind::Corrupt, "{name}");
        }
    }
}
