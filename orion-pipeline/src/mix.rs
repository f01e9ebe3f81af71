//! Which type each tensor gets: the mixes of `llama-quantize`, its substitutes included.

use orion_core::{Error, MetaValue, ModelHeader, Result, TensorInfo, TensorType};

macro_rules! file_types {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $name:literal, $default:ident;)*) => {
        /// A recipe for a whole file, by llama.cpp's names.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum FileType { $($(#[$doc])* $variant,)* }

        impl FileType {
            /// Every recipe.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its number, as `general.file_type` records it.
            #[must_use]
            pub const fn id(self) -> u32 { match self { $(Self::$variant => $id,)* } }

            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(Self::$variant => $name,)* } }

            /// The type of tensors that nothing singles out.
            #[must_use]
            pub const fn default_type(self) -> TensorType { match self { $(Self::$variant => TensorType::$default,)* } }
        }
    };
}

file_types! {
    /// 32-bit floats.
    F32 = 0, "F32", F32;
    /// IEEE halves.
    F16 = 1, "F16", F16;
    /// bfloat16.
    Bf16 = 32, "BF16", BF16;
    /// 4 bits, one scale per 32.
    Q4_0 = 2, "Q4_0", Q4_0;
    /// 4 bits, scale and minimum per 32.
    Q4_1 = 3, "Q4_1", Q4_1;
    /// 5 bits, one scale per 32.
    Q5_0 = 8, "Q5_0", Q5_0;
    /// 5 bits, scale and minimum per 32.
    Q5_1 = 9, "Q5_1", Q5_1;
    /// 8 bits.
    Q8_0 = 7, "Q8_0", Q8_0;
    /// 2 bits, sensitive tensors 3 and 4.
    Q2K = 10, "Q2_K", Q2K;
    /// 2 bits; needs importances.
    Q2Ks = 21, "Q2_K_S", Q2K;
    /// 3 bits.
    Q3Ks = 11, "Q3_K_S", Q3K;
    /// 3 bits, sensitive tensors 4 and 5.
    Q3Km = 12, "Q3_K_M", Q3K;
    /// 3 bits, sensitive tensors 5.
    Q3Kl = 13, "Q3_K_L", Q3K;
    /// 4 bits, a few sensitive tensors 5.
    Q4Ks = 14, "Q4_K_S", Q4K;
    /// 4 bits, half of the sensitive tensors 6.
    Q4Km = 15, "Q4_K_M", Q4K;
    /// 5 bits.
    Q5Ks = 16, "Q5_K_S", Q5K;
    /// 5 bits, half of the sensitive tensors 6.
    Q5Km = 17, "Q5_K_M", Q5K;
    /// 6 bits.
    Q6K = 18, "Q6_K", Q6K;
    /// 4 bits on a non-linear grid, one scale per 32.
    Iq4Nl = 25, "IQ4_NL", Iq4Nl;
    /// 4 bits on a non-linear grid, super-blocks of 256.
    Iq4Xs = 30, "IQ4_XS", Iq4Xs;
}

impl FileType {
    /// The recipe of that name, in any case; `Q3_K`, `Q4_K` and `Q5_K` stand for the `_M` mixes.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) with the names that are known.
    pub fn from_name(name: &str) -> Result<Self> {
        let name = name.to_ascii_uppercase();
        let full = if matches!(name.as_str(), "Q3_K" | "Q4_K" | "Q5_K") { format!("{name}_M") } else { name };
        Self::ALL.iter().copied().find(|ty| ty.name() == full).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|ty| ty.name()).collect();
            Error::invalid(format!("no type {full:?}; known: {}", known.join(", ")))
        })
    }
}

/// A good choice for so many bits, whatever a model's rows divide into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Level {
    /// About 4.5 to 5 bits: hard to tell from the original.
    Q4,
    /// About 3.5 to 4.5 bits.
    Q3,
    /// About 2.5 to 3.5 bits, where rows allow it.
    Q2,
}

impl Level {
    /// The level of that name: `q4`, `q3` or `q2`.
    ///
    /// # Errors
    /// [`InvalidInput`](orion_core::ErrorKind::InvalidInput) with the names that are known.
    pub fn from_name(name: &str) -> Result<Self> {
        match name.to_ascii_lowercase().as_str() {
            "q4" => Ok(Self::Q4),
            "q3" => Ok(Self::Q3),
            "q2" => Ok(Self::Q2),
            other => Err(Error::invalid(format!("no level {other:?}; known: q4, q3, q2"))),
        }
    }

    /// The recipe for these tensors: K-quants if most weights stand in rows that divide into their blocks of 256,
    /// otherwise types with blocks of 32, since substitutes would be larger than what was asked for.
    #[must_use]
    pub fn file_type(self, tensors: &[TensorInfo]) -> FileType {
        let (mut fitting, mut all) = (0, 0);
        for tensor in tensors.iter().filter(|tensor| is_quantisable(tensor)) {
            all += tensor.elements();
            fitting += if columns(tensor).is_multiple_of(256) { tensor.elements() } else { 0 };
        }
        match (self, 2 * fitting >= all) {
            (Self::Q4, true) => FileType::Q4Km,
            (Self::Q3, true) => FileType::Q3Km,
            (Self::Q2, true) => FileType::Q2K,
            (Self::Q4, false) => FileType::Q4_1,
            (Self::Q3 | Self::Q2, false) => FileType::Q4_0,
        }
    }
}

/// What the choice of types depends on besides the tensors' names and shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traits {
    /// `general.architecture`; empty if unknown.
    pub architecture: String,
    /// Transformer layers.
    pub layers: u64,
    /// Query heads per key-value head.
    pub gqa: u64,
    /// Experts; 0 if dense.
    pub experts: u64,
}

impl Traits {
    /// Reads them from the metadata; what is missing counts as zero.
    #[must_use]
    pub fn of(header: &ModelHeader) -> Self {
        let architecture = header
            .metadata
            .get("general.architecture")
            .and_then(MetaValue::as_str)
            .unwrap_or_default()
            .to_owned();
        let value = |key: &str| {
            let value = header.metadata.get(&format!("{architecture}.{key}"))?;
            // Some architectures give one number per layer.
            value.as_u64().or_else(|| u64::try_from(*value.as_i32s()?.first()?).ok())
        };
        let heads = value("attention.head_count").unwrap_or(0);
        let kv_heads = value("attention.head_count_kv").unwrap_or(heads);
        Self {
            layers: value("block_count").unwrap_or(0),
            gqa: heads.checked_div(kv_heads).unwrap_or(0),
            experts: value("expert_count").unwrap_or(0),
            architecture,
        }
    }

    /// The 70-billion models, whose value heads are few and cheap to keep.
    fn is_70b(&self) -> bool {
        self.layers == 80
            && match self.architecture.as_str() {
                "llama" => self.gqa != 1,
                "qwen2" => true,
                _ => false,
            }
    }
}

/// The type of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedTensor {
    /// What it becomes.
    pub to: TensorType,
    /// What the mix wanted, where its rows do not divide into that type's blocks.
    pub instead_of: Option<TensorType>,
}

/// The types of a model's tensors, in the order of its table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// One per tensor.
    pub tensors: Vec<PlannedTensor>,
}

/// The part a tensor plays, as far as mixes distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Output,
    Embedding,
    /// Values, alone or fused with queries and keys.
    Value,
    Key,
    AttentionOutput,
    Down,
    Other,
}

impl Part {
    fn of(name: &str) -> Self {
        const PARTS: [(&str, Part); 6] = [
            ("attn_qkv.weight", Part::Value),
            ("attn_kv_b.weight", Part::Value),
            ("attn_v.weight", Part::Value),
            ("attn_k.weight", Part::Key),
            ("attn_output.weight", Part::AttentionOutput),
            ("ffn_down", Part::Down),
        ];
        match name {
            "output.weight" => Self::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Self::Embedding,
            _ => PARTS.iter().find(|(part, _)| name.contains(part)).map_or(Self::Other, |&(_, part)| part),
        }
    }
}

/// Whether a tensor is one that quantisers touch: a matrix of weights that is neither a norm nor a small table.
pub(crate) fn is_quantisable(tensor: &TensorInfo) -> bool {
    const LEFT_ALONE: [&str; 14] = [
        "_norm.weight",
        "ffn_gate_inp.weight",
        "altup",
        "laurel",
        "per_layer_model_proj",
        "ssm_conv1d",
        "shortconv.conv.weight",
        "attn_rel_b.weight",
        "time_mix_",
        ".position_embd",
        ".rel_pos",
        ".patch_embd",
        ".patch_merger",
        "indexer.",
    ];
    // A single row counts as a vector.
    tensor.shape.iter().rev().skip(1).any(|&dim| dim > 1)
        && tensor.name.ends_with("weight")
        && !matches!(tensor.name.as_str(), "position_embd.weight" | "token_types.weight")
        && !LEFT_ALONE.iter().any(|part| tensor.name.contains(part))
}

/// `blk.N.…` gives N.
fn layer_of(name: &str) -> Option<u64> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// Chooses the types. `weighted` says whether there are importances.
#[must_use]
pub fn plan(tensors: &[TensorInfo], traits: &Traits, file_type: FileType, weighted: bool) -> Plan {
    let mix = Mix {
        traits,
        file_type,
        weighted,
        tied: !tensors.iter().any(|tensor| tensor.name == "output.weight"),
        values: tensors.iter().filter(|tensor| Part::of(&tensor.name) == Part::Value).count() as u64,
    };
    // Some rules count tensors of a kind: in the order of layers, whatever the order of the table.
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| {
        (layer_of(&tensors[i].name).map_or(0, |layer| layer + 1), tensors[i].name.as_str())
    });
    let (mut value, mut down) = (0, 0);
    let mut planned: Vec<_> =
        tensors.iter().map(|tensor| PlannedTensor { to: tensor.ty, instead_of: None }).collect();
    for i in order {
        let tensor = &tensors[i];
        if !is_quantisable(tensor) {
            continue;
        }
        let part = Part::of(&tensor.name);
        let wanted = if file_type.default_type().is_quantised() {
            let nth = if part == Part::Value { value } else { down };
            mix.wanted(part, tensor, nth)
        } else {
            file_type.default_type()
        };
        value += u64::from(part == Part::Value);
        down += u64::from(part == Part::Down);
        let to = fitting(wanted, columns(tensor));
        planned[i] = PlannedTensor { to, instead_of: (to != wanted).then_some(wanted) };
    }
    Plan { tensors: planned }
}

fn columns(tensor: &TensorInfo) -> u64 {
    tensor.shape.last().copied().unwrap_or(1)
}

/// The type, or its substitute for rows that do not divide into its blocks.
pub(crate) fn fitting(wanted: TensorType, columns: u64) -> TensorType {
    use TensorType as T;
    let fits = |ty: T| columns.is_multiple_of(ty.block_len() as u64);
    if fits(wanted) {
        return wanted;
    }
    let smaller = match wanted {
        T::Iq4Xs => T::Iq4Nl,
        T::Q2K | T::Q3K => T::Q4_0,
        T::Q4K => T::Q5_0,
        T::Q5K => T::Q5_1,
        T::Q6K => T::Q8_0,
        other => other,
    };
    if fits(smaller) { smaller } else { T::F16 }
}

struct Mix<'a> {
    traits: &'a Traits,
    file_type: FileType,
    weighted: bool,
    /// The embedding is the head, too.
    tied: bool,
    /// Number of value tensors.
    values: u64,
}

impl Mix<'_> {
    /// The type of a tensor; `nth` counts the tensors of its part before it.
    fn wanted(&self, part: Part, tensor: &TensorInfo, nth: u64) -> TensorType {
        use FileType as F;
        use TensorType as T;
        let default = self.file_type.default_type();
        let eight_experts = self.traits.experts == 8;
        match part {
            Part::Output => self.head(columns(tensor)),
            Part::Embedding if self.tied => self.head(columns(tensor)),
            Part::Value if eight_experts => T::Q8_0,
            Part::Value => match self.value(nth) {
                T::Q3K | T::Q4K if self.traits.is_70b() => T::Q5K,
                ty => ty,
            },
            Part::Key if eight_experts => T::Q8_0,
            Part::Down => {
                let layer = if self.traits.experts > 1 { layer_of(&tensor.name).unwrap_or(nth) } else { nth };
                self.down(layer)
            }
            Part::AttentionOutput => match self.file_type {
                F::Q2K | F::Q3Ks | F::Q3Km | F::Q4Ks | F::Q4Km | F::Iq4Nl | F::Iq4Xs if eight_experts => {
                    T::Q5K
                }
                _ if eight_experts => default,
                F::Q2K => T::Q3K,
                F::Q3Km => T::Q4K,
                F::Q3Kl => T::Q5K,
                _ => default,
            },
            Part::Embedding | Part::Key | Part::Other => default,
        }
    }

    /// The head, whose errors nothing downstream evens out.
    fn head(&self, columns: u64) -> TensorType {
        let default = self.file_type.default_type();
        if default == TensorType::Q8_0 || !columns.is_multiple_of(default.block_len() as u64) {
            TensorType::Q8_0
        } else {
            TensorType::Q6K
        }
    }

    fn value(&self, nth: u64) -> TensorType {
        use FileType as F;
        use TensorType as T;
        let few_heads = self.traits.gqa >= 4;
        match self.file_type {
            F::Q2K if few_heads => T::Q4K,
            F::Q2K => T::Q3K,
            F::Q2Ks if few_heads => T::Q4K,
            F::Q3Km => {
                if nth < 2 {
                    T::Q5K
                } else {
                    T::Q4K
                }
            }
            F::Q3Kl => T::Q5K,
            F::Iq4Nl | F::Iq4Xs if few_heads => T::Q5K,
            F::Q4Km | F::Q5Km if needs_more_bits(nth, self.values) => T::Q6K,
            F::Q4Ks if nth < 4 => T::Q5K,
            other => other.default_type(),
        }
    }

    fn down(&self, layer: u64) -> TensorType {
        use FileType as F;
        use TensorType as T;
        let layers = self.traits.layers;
        let early = layer < layers / 8;
        match self.file_type {
            F::Q2K => T::Q3K,
            F::Q2Ks if early => T::Q4K,
            F::Q3Km => {
                if layer < layers / 16 {
                    T::Q5K
                } else {
                    T::Q4K
                }
            }
            F::Q3Kl => T::Q5K,
            F::Q4Km | F::Q5Km if needs_more_bits(layer, layers) => T::Q6K,
            F::Q4Ks if early => T::Q5K,
            F::Iq4Nl | F::Iq4Xs if early && !self.weighted => T::Q5K,
            // The first layers go astray under importances with a scale alone.
            F::Q4_0 if early && self.weighted => T::Q4_1,
            F::Q5_0 if early && self.weighted => T::Q5_1,
            other => other.default_type(),
        }
    }
}

/// The first and the last eighth of the layers, and every third between.
fn needs_more_bits(layer: u64, layers: u64) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}
