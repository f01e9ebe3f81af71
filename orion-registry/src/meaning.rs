//! The second step: what fits the schema must also make sense.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use crate::document::{FileRole, ModelEntry, ModelFile};
use crate::inherit::Inherit;
use crate::layers::{At, Layer, MissingFiles, Reporter};
use crate::paths::{Found, check_path, check_url, look};
use crate::report::{Report, Severity};
use crate::schema::{Quoted, did_you_mean, quoted};

/// Fewest and most bits a parameter can take.
const BITS_PER_PARAMETER: std::ops::RangeInclusive<f64> = 0.5..=66.0;

/// A model of the merged catalogue.
#[derive(Debug)]
pub(crate) struct Merged {
    /// With what it takes over from its base.
    pub(crate) entry: ModelEntry,
    /// The layer its own fields come from.
    pub(crate) layer: usize,
    /// Its place in the list of that layer.
    index: usize,
    own_files: bool,
    /// The layer its files come from.
    pub(crate) files_from: usize,
}

impl Merged {
    fn at(&self, rest: &str) -> At {
        At { layer: self.layer, pointer: format!("/models/{}{rest}", self.index) }
    }
}

/// The layers as one catalogue.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    pub(crate) models: Vec<Merged>,
    pub(crate) ids: HashMap<String, usize>,
    /// Alias → model id, resolved.
    pub(crate) aliases: BTreeMap<String, String>,
}

impl Catalogue {
    fn resolve(&self, name: &str) -> Option<usize> {
        self.ids.get(name).or_else(|| self.ids.get(self.aliases.get(name)?)).copied()
    }
}

/// Merges the layers and checks everything that spans more than one value.
pub(crate) fn examine(layers: &mut [Layer<'_>], missing: MissingFiles, report: &mut Report) -> Catalogue {
    let contents = layers.iter_mut().map(|layer| std::mem::take(&mut layer.models)).collect();
    let mut out = Reporter { layers, report };
    let mut catalogue = merge(contents, &mut out);
    inherit_bases(&mut catalogue, &mut out);
    resolve_aliases(&mut catalogue, &mut out);
    let mut parents = Parents::default();
    for model in &catalogue.models {
        check_files(model, missing, &mut parents, &mut out);
        check_facts(model, &mut out);
    }
    check_fallbacks(&catalogue, &mut out);
    check_names(&catalogue, &mut out);
    check_heads(missing, &mut out);
    catalogue
}

fn merge(contents: Vec<Vec<(usize, ModelEntry)>>, out: &mut Reporter<'_, '_>) -> Catalogue {
    let mut catalogue = Catalogue::default();
    for (layer, entries) in contents.into_iter().enumerate() {
        let mut seen: HashMap<String, usize> = HashMap::with_capacity(entries.len());
        for (index, entry) in entries {
            if entry.id.is_empty() {
                continue; // The schema step has said so.
            }
            if let Some(first) = seen.get(entry.id.as_str()) {
                let at = At { layer, pointer: format!("/models/{index}/id") };
                let related = At { layer, pointer: format!("/models/{first}/id") };
                let message = format!("the id {:?} is taken by /models/{first}", entry.id);
                out.say(
                    Severity::Error,
                    &at,
                    ("duplicate-id", message, "give each model its own id"),
                    Some(&related),
                );
                continue;
            }
            seen.insert(entry.id.clone(), index);
            let own_files = !entry.files.is_empty();
            let merged = Merged { entry, layer, index, own_files, files_from: layer };
            match catalogue.ids.get(&merged.entry.id) {
                Some(place) => catalogue.models[*place] = merged,
                None => {
                    catalogue.ids.insert(merged.entry.id.clone(), catalogue.models.len());
                    catalogue.models.push(merged);
                }
            }
        }
    }
    catalogue
}

fn unknown(catalogue: &Catalogue, name: &str, out: &Reporter<'_, '_>) -> String {
    let names = catalogue.ids.keys().chain(catalogue.aliases.keys()).map(String::as_str);
    match if out.report.is_long() { None } else { did_you_mean(name, names) } {
        Some(near) => format!("did you mean {near:?}?"),
        None => "name a model of this catalogue or an alias".to_owned(),
    }
}

/// The first cycle through each node of a graph in which every node knows its successors; each is reported once.
/// Iterative, because a chain may be as long as the catalogue.
fn cycles(count: usize, successors: impl Fn(usize) -> Vec<usize>) -> Vec<Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; count];
    let mut found = Vec::new();
    for start in 0..count {
        if marks[start] != Mark::New {
            continue;
        }
        marks[start] = Mark::Open;
        let mut stack = vec![(start, successors(start).into_iter())];
        while let Some((node, rest)) = stack.last_mut() {
            match rest.next() {
                None => {
                    marks[*node] = Mark::Done;
                    stack.pop();
                }
                Some(next) if marks[next] == Mark::New => {
                    marks[next] = Mark::Open;
                    stack.push((next, successors(next).into_iter()));
                }
                Some(next) if marks[next] == Mark::Open => {
                    let from = stack
                        .iter()
                        .position(|(node, _)| *node == next)
                        .expect("open nodes are on the stack");
                    found.push(stack[from..].iter().map(|(node, _)| *node).collect());
                }
                Some(_) => {}
            }
        }
    }
    found
}

fn chain<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<_> = names.collect();
    let shown = if names.len() > 8 { [&names[..7], &["…"]].concat() } else { names.clone() };
    format!("{} → {}", shown.join(" → "), names.first().copied().unwrap_or_default())
}

fn inherit_bases(catalogue: &mut Catalogue, out: &mut Reporter<'_, '_>) {
    let bases: Vec<Option<usize>> = catalogue
        .models
        .iter()
        .map(|model| {
            let base = model.entry.base.as_deref()?;
            let found = catalogue.ids.get(base).copied();
            if found.is_none() {
                let message = format!("the base {} is no model here", quoted(base));
                let help = unknown(catalogue, base, out);
                out.error(&model.at("/base"), ("unknown-model", message, &help));
            }
            found
        })
        .collect();
    let mut cyclic = BTreeSet::new();
    for cycle in cycles(bases.len(), |node| bases[node].into_iter().collect()) {
        let models = &catalogue.models;
        let (first, last) = (&models[cycle[0]], &models[cycle[cycle.len() - 1]]);
        let names = chain(cycle.iter().map(|node| models[*node].entry.id.as_str()));
        let what = ("base-cycle", format!("bases form a cycle: {names}"), "let one of them stand for itself");
        out.say(Severity::Error, &first.at("/base"), what, Some(&last.at("/base")));
        cyclic.extend(cycle);
    }
    // A base is settled before what builds on it.
    let mut settled: Vec<bool> = bases.iter().map(Option::is_none).collect();
    for start in 0..bases.len() {
        let mut way = Vec::new();
        let mut node = start;
        while let (false, false, Some(base)) = (settled[node], cyclic.contains(&node), bases[node]) {
            way.push((node, base));
            node = base;
        }
        for (node, base) in way.into_iter().rev() {
            let (entry, files_from) =
                (catalogue.models[base].entry.clone(), catalogue.models[base].files_from);
            let model = &mut catalogue.models[node];
            if model.entry.files.is_empty() {
                model.files_from = files_from;
            }
            model.entry.inherit(&entry);
            settled[node] = true;
        }
    }
}

fn resolve_aliases(catalogue: &mut Catalogue, out: &mut Reporter<'_, '_>) {
    let mut all: BTreeMap<&str, (&str, At)> = BTreeMap::new();
    for (layer, content) in out.layers.iter().enumerate() {
        for (alias, target) in &content.document.aliases {
            let pointer = format!("/aliases/{}", crate::json::escape(alias));
            all.insert(alias, (target, At { layer, pointer }));
        }
    }
    let names: Vec<&str> = all.keys().copied().collect();
    let place = |name: &str| names.binary_search(&name).ok();
    for (alias, (target, at)) in &all {
        if let Some(index) = catalogue.ids.get(*alias) {
            let model = &catalogue.models[*index];
            let message = format!("the alias {} is also the id of {}", quoted(alias), model.at("").pointer);
            let what = ("alias-clash", message, "give the alias another name");
            out.say(Severity::Error, at, what, Some(&model.at("/id")));
        } else if alias.trim().is_empty() {
            out.error(at, ("malformed", "the alias is empty".to_owned(), "give it a name"));
        }
        if !catalogue.ids.contains_key(*target) && place(target).is_none() {
            let known = catalogue.ids.keys().map(String::as_str).chain(names.iter().copied());
            let near = if out.report.is_long() { None } else { did_you_mean(target, known) };
            let help = near.map_or("name a model of this catalogue or an alias".to_owned(), |n| {
                format!("did you mean {n:?}?")
            });
            let message =
                format!("the alias {} leads to {}, which is nothing", quoted(alias), quoted(target));
            out.error(at, ("unknown-model", message, &help));
        }
    }
    let next = |node: usize| -> Vec<usize> {
        let target = all[names[node]].0;
        if catalogue.ids.contains_key(target) { Vec::new() } else { place(target).into_iter().collect() }
    };
    for cycle in cycles(names.len(), next) {
        let text = chain(cycle.iter().map(|node| names[*node]));
        let what = ("alias-cycle", format!("aliases form a cycle: {text}"), "let one of them name a model");
        let (first, last) = (&all[names[cycle[0]]].1, &all[names[cycle[cycle.len() - 1]]].1);
        out.say(Severity::Error, first, what, Some(last));
    }
    for name in &names {
        let mut target = all[name].0;
        // More steps than there are aliases means a cycle, which was reported.
        for _ in 0..names.len() {
            if catalogue.ids.contains_key(target) {
                catalogue.aliases.insert((*name).to_owned(), target.to_owned());
                break;
            }
            match all.get(target) {
                Some((further, _)) => target = further,
                None => break,
            }
        }
    }
}

/// Parents of model files that were looked at already: a catalogue has many files in few folders.
#[derive(Default)]
struct Parents(HashMap<(PathBuf, String), Option<PathBuf>>);

impl Parents {
    /// Looks in each root, the first one that has something there counts.
    fn look(&mut self, roots: &[PathBuf], path: &str) -> Found {
        let looked = roots.iter().map(|root| self.look_in(root, path));
        looked.into_iter().find(|found| !matches!(found, Found::Missing)).unwrap_or(Found::Missing)
    }

    fn look_in(&mut self, root: &Path, path: &str) -> Found {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let key = (root.to_owned(), folder.to_owned());
        let parent = self.0.entry(key).or_insert_with(|| root.join(folder).canonicalize().ok());
        let Some(parent) = parent else { return Found::Missing };
        if !parent.starts_with(root) {
            return Found::Outside(parent.clone());
        }
        match parent.join(name).symlink_metadata() {
            Ok(metadata) if metadata.is_file() => Found::File(metadata.len()),
            Ok(metadata) if metadata.is_symlink() => look(root, path),
            Ok(_) => Found::NoFile,
            Err(_) => Found::Missing,
        }
    }
}

fn check_files(model: &Merged, missing: MissingFiles, parents: &mut Parents, out: &mut Reporter<'_, '_>) {
    let entry = &model.entry;
    if entry.files.is_empty() {
        // Broken files are in the text but were not decoded; they have been reported.
        let layers = out.layers;
        let node = layers[model.layer].node.as_ref();
        let written = node.is_some_and(|node| node.nearest(&model.at("").pointer).get("files").is_some());
        let base = entry.base.is_some();
        if !written && !base {
            let message = format!("the model {:?} has no files", entry.id);
            out.error(&model.at(""), ("no-files", message, "list its files, or name a base that has them"));
        } else if written
            && !base
            && node.is_some_and(|n| n.nearest(&model.at("/files").pointer).elements().is_empty())
        {
            let message = format!("the model {:?} has an empty list of files", entry.id);
            out.error(&model.at("/files"), ("no-files", message, "list at least one"));
        }
        return;
    }
    if !model.own_files {
        return; // They are the base's and are checked there.
    }
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (index, file) in entry.files.iter().enumerate() {
        check_file(model, index, file, missing, parents, out);
        if let Some(location) = file.path.as_deref().or(file.url.as_deref())
            && let Some(first) = seen.insert(location, index)
        {
            let message = format!("the file {} is listed twice", quoted(location));
            let what = ("duplicate-file", message, "list it once");
            let related = model.at(&format!("/files/{first}"));
            out.say(Severity::Error, &model.at(&format!("/files/{index}")), what, Some(&related));
        }
    }
    if entry.files.iter().all(|file| file.role != FileRole::Weights) {
        let message = format!("none of the files of {:?} holds weights", entry.id);
        out.error(&model.at("/files"), ("no-weights", message, "give one of them the role \"weights\""));
    }
    check_sizes(model, out);
}

fn check_file(
    model: &Merged,
    index: usize,
    file: &ModelFile,
    missing: MissingFiles,
    parents: &mut Parents,
    out: &mut Reporter<'_, '_>,
) {
    let at = |field: &str| model.at(&format!("/files/{index}{field}"));
    if let Some(url) = &file.url
        && let Err((code, message, help)) = check_url(url)
    {
        out.error(&at("/url"), (code, message, help));
    }
    let Some(path) = &file.path else {
        if file.url.is_none() {
            let message = "a file without path or url".to_owned();
            out.error(&at(""), ("no-location", message, "say where it is"));
        }
        return;
    };
    if path.is_empty() {
        return; // The schema step has said so.
    }
    if let Err((code, message, help)) = check_path(path) {
        out.error(&at("/path"), (code, message, help));
        return;
    }
    let shown = Quoted(path);
    match parents.look(&out.layers[model.layer].raw.roots, path) {
        Found::File(size) => {
            if let Some(bytes) = file.bytes.filter(|bytes| *bytes != size) {
                let message = format!("{shown} has {size} bytes on disk, {bytes} are stated");
                out.error(
                    &at("/bytes"),
                    ("size-contradicts", message, "correct the size, or get the file again"),
                );
            }
        }
        Found::Outside(real) => {
            let message =
                format!("{shown} is a link out of the folder, to {}", quoted(&real.display().to_string()));
            out.error(&at("/path"), ("path-escapes", message, "put the file itself into the folder"));
        }
        Found::NoFile => {
            out.error(&at("/path"), ("not-a-file", format!("{shown} is no file"), "name a file"));
        }
        // With a URL it will be fetched.
        Found::Missing if file.url.is_some() => {}
        Found::Missing => {
            let what = (
                "file-missing",
                format!("{shown} is not there"),
                "put it there, or add a url to get it from",
            );
            match missing {
                MissingFiles::Ignore => {}
                MissingFiles::Warn => out.warn(&at("/path"), what),
                MissingFiles::Error => out.error(&at("/path"), what),
            }
        }
    }
}

fn check_sizes(model: &Merged, out: &mut Reporter<'_, '_>) {
    let entry = &model.entry;
    let sum = |role: Option<FileRole>| {
        let files = entry.files.iter().filter(|file| role.is_none_or(|role| file.role == role));
        files.map(|file| file.bytes).try_fold(0u64, |sum, bytes| sum.checked_add(bytes?))
    };
    if let (Some(stated), Some(sum)) = (entry.disk_bytes, sum(None))
        && stated != sum
    {
        let message = format!("disk_bytes is {stated}, the files add up to {sum} bytes");
        out.error(&model.at("/disk_bytes"), ("size-contradicts", message, "state the sum of the files"));
    }
    if let (Some(parameters), Some(bytes)) = (entry.parameters, sum(Some(FileRole::Weights))) {
        #[allow(clippy::cast_precision_loss, reason = "a ratio of two sizes")]
        let bits = bytes as f64 * 8.0 / parameters as f64;
        if !BITS_PER_PARAMETER.contains(&bits) {
            let message =
                format!("{parameters} parameters in {bytes} bytes of weights are {bits:.2} bits each");
            out.error(&model.at("/parameters"), ("size-contradicts", message, "correct one of the two"));
        }
    }
    let mut digests: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for (index, file) in entry.files.iter().enumerate() {
        let (Some(digest), Some(bytes)) = (&file.sha256, file.bytes) else { continue };
        let (first, size) = *digests.entry(digest).or_insert((index, bytes));
        if size != bytes {
            let message = format!("the same digest with {size} and with {bytes} bytes");
            let related = model.at(&format!("/files/{first}/bytes"));
            let what = ("size-contradicts", message, "correct size or digest");
            out.say(Severity::Error, &model.at(&format!("/files/{index}/bytes")), what, Some(&related));
        }
    }
}

fn check_facts(model: &Merged, out: &mut Reporter<'_, '_>) {
    let entry = &model.entry;
    if let (Some(ram), Some(weights)) = (entry.min_ram_bytes, entry.memory.weight_bytes)
        && ram < weights
    {
        let message = format!("min_ram_bytes is {ram}, the weights alone take {weights}");
        out.error(
            &model.at("/min_ram_bytes"),
            ("size-contradicts", message, "ask for more than the weights"),
        );
    }
    let prompt = &entry.prompt;
    if prompt.template.is_some() && prompt.has_prefixes() {
        let message = "both a template and prefixes".to_owned();
        out.error(&model.at("/prompt"), ("contradiction", message, "keep the template or the prefixes"));
    } else if prompt.has_prefixes() && (prompt.user_prefix.is_none() || prompt.assistant_prefix.is_none()) {
        let message = "prefixes without user_prefix and assistant_prefix".to_owned();
        out.error(&model.at("/prompt"), ("incomplete", message, "set both, even if one is empty"));
    }
    for (field, list) in
        [("capabilities", &entry.capabilities), ("languages", &entry.languages), ("stop", &entry.stop)]
    {
        let mut seen = BTreeSet::new();
        if let Some(twice) = list.iter().find(|item| !seen.insert(*item)) {
            let message = format!("{} is listed twice", quoted(twice));
            out.warn(&model.at(&format!("/{field}")), ("duplicate", message, "list it once"));
        }
    }
}

fn check_fallbacks(catalogue: &Catalogue, out: &mut Reporter<'_, '_>) {
    let mut graph: Vec<Vec<usize>> = Vec::with_capacity(catalogue.models.len());
    for (number, model) in catalogue.models.iter().enumerate() {
        let mut successors = Vec::new();
        let entry = &model.entry;
        for (index, name) in entry.fallback.iter().enumerate() {
            let at = model.at(&format!("/fallback/{index}"));
            match catalogue.resolve(name) {
                None => {
                    let help = unknown(catalogue, name, out);
                    let message = format!("the fallback {} of {:?} is no model here", quoted(name), entry.id);
                    out.error(&at, ("unknown-model", message, &help));
                }
                Some(target) if target == number => {
                    let message = format!("{:?} falls back to itself", entry.id);
                    out.error(&at, ("self-fallback", message, "remove it from its own chain"));
                }
                Some(target) if successors.contains(&target) => {
                    let message = format!("{} is in the chain of {:?} twice", quoted(name), entry.id);
                    out.warn(&at, ("duplicate", message, "list it once"));
                }
                Some(target) => successors.push(target),
            }
        }
        if let Some(name) = &entry.first_responder {
            let at = model.at("/first_responder");
            match catalogue.resolve(name) {
                None => {
                    let help = unknown(catalogue, name, out);
                    let message = format!("the first responder {} is no model here", quoted(name));
                    out.error(&at, ("unknown-model", message, &help));
                }
                Some(target) if target == number => {
                    let message = format!("{:?} is its own first responder", entry.id);
                    out.error(&at, ("self-fallback", message, "name a smaller model"));
                }
                Some(_) => {}
            }
        }
        graph.push(successors);
    }
    for cycle in cycles(graph.len(), |node| graph[node].clone()) {
        let models = &catalogue.models;
        let (first, last) = (&models[cycle[0]], &models[cycle[cycle.len() - 1]]);
        let names = chain(cycle.iter().map(|node| models[*node].entry.id.as_str()));
        let what = ("fallback-cycle", format!("fallbacks form a cycle: {names}"), "end one of the chains");
        out.say(Severity::Error, &first.at("/fallback"), what, Some(&last.at("/fallback")));
    }
}

/// The head of the router is a file that stands where heads may stand.
fn check_heads(missing: MissingFiles, out: &mut Reporter<'_, '_>) {
    for layer in 0..out.layers.len() {
        let read = &out.layers[layer];
        let Some(path) = read.document.router.head.clone().filter(|path| !path.is_empty()) else { continue };
        let at = At { layer, pointer: "/router/head".to_owned() };
        if let Err(complaint) = check_path(&path) {
            out.error(&at, complaint);
            continue;
        }
        let shown = quoted(&path);
        match look(&read.raw.roots[0], &path) {
            Found::File(_) => {}
            Found::Outside(real) => {
                let message = format!(
                    "{shown} is a link out of the folder, to {}",
                    quoted(&real.display().to_string())
                );
                out.error(&at, ("path-escapes", message, "put the file itself into the folder"));
            }
            Found::NoFile => {
                out.error(&at, ("not-a-file", format!("{shown} is no file"), "name a file"));
            }
            Found::Missing => {
                let message = format!("{shown} is not there");
                let what =
                    ("file-missing", message, "train it with `orion router train`, or correct the path");
                match missing {
                    MissingFiles::Ignore => {}
                    MissingFiles::Warn => out.warn(&at, what),
                    MissingFiles::Error => out.error(&at, what),
                }
            }
        }
    }
}

/// Groups, recommendations, defaults, router and measured figures name models that exist.
fn check_names(catalogue: &Catalogue, out: &mut Reporter<'_, '_>) {
    let check = |out: &mut Reporter<'_, '_>, at: At, name: &str, what: &str| {
        let found = catalogue.resolve(name);
        if found.is_none() {
            let help = unknown(catalogue, name, out);
            out.error(
                &at,
                ("unknown-model", format!("{what} names {}, which is no model here", quoted(name)), &help),
            );
        }
        found
    };
    let layers = out.layers;
    for (layer, content) in layers.iter().enumerate() {
        let document = &content.document;
        for (field, groups) in [("groups", &document.groups), ("recommendations", &document.recommendations)]
        {
            for (group, content) in groups {
                for (index, name) in content.models.iter().enumerate() {
                    let pointer = format!("/{field}/{}/models/{index}", crate::json::escape(group));
                    check(out, At { layer, pointer }, name, &format!("{field} {}", quoted(group)));
                }
            }
        }
        let single = [
            ("/defaults/model", &document.defaults.model, false),
            ("/defaults/embedder", &document.defaults.embedder, true),
            ("/router/encoder", &document.router.encoder, true),
            ("/router/fallback", &document.router.fallback, false),
        ];
        for (pointer, name, encoder) in single {
            let Some(name) = name else { continue };
            let at = At { layer, pointer: pointer.to_owned() };
            let found = check(out, at.clone(), name, pointer);
            let able =
                |index: usize| catalogue.models[index].entry.capabilities.iter().any(|it| it == "embedding");
            if encoder && found.is_some_and(|index| !able(index)) {
                let message = format!("{} does not state the capability \"embedding\"", quoted(name));
                out.warn(&at, ("wrong-capability", message, "name an encoder, or state the capability"));
            }
        }
        for name in document.measured.keys() {
            if catalogue.resolve(name).is_none() {
                let pointer = format!("/measured/{}", crate::json::escape(name));
                let message = format!("figures of {}, which is no model here", quoted(name));
                out.warn(
                    &At { layer, pointer },
                    ("unknown-model", message, "remove them if the model is gone"),
                );
            }
        }
    }
}
