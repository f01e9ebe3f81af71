//! The methods: their names, what they ask of their inputs, and their parameters.

use orion_core::{Error, Result};

/// Whether a method starts from a base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    Ignored,
    Optional,
    Required,
}

/// What a method asks of its inputs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contract {
    base: Base,
    inputs: (usize, usize),
    non_base: (usize, usize),
}

const ANY: usize = usize::MAX;

impl Contract {
    pub(crate) fn base_required(self) -> bool {
        self.base == Base::Required
    }

    /// Whether a model may be the base of a group.
    pub(crate) fn uses_base(self) -> bool {
        self.base != Base::Ignored
    }

    /// Checks the inputs of one slice.
    pub(crate) fn check(self, inputs: &[&str], base: Option<&str>) -> Result<()> {
        if let Some((at, twice)) = inputs.iter().enumerate().find(|(at, name)| inputs[..*at].contains(name)) {
            return Err(Error::invalid(format!("the same model is input {at} and one before"))
                .about((*twice).to_owned()));
        }
        let base = base.filter(|_| self.uses_base());
        let has_base = base.is_some_and(|base| inputs.contains(&base));
        if base.is_some() && !has_base {
            return Err(Error::invalid("the base model is not among the inputs"));
        }
        if self.base == Base::Required && !has_base {
            return Err(Error::invalid("needs a base_model among its inputs"));
        }
        let bounds = |what: &str, count: usize, (least, most): (usize, usize)| match () {
            () if count < least || count > most => Err(Error::invalid(match (least, most) {
                (least, most) if least == most => format!("needs exactly {least} {what}, got {count}"),
                (least, _) if count < least => format!("needs at least {least} {what}, got {count}"),
                (_, most) => format!("takes at most {most} {what}, got {count}"),
            })),
            () => Ok(()),
        };
        bounds("models", inputs.len(), self.inputs)?;
        bounds("models besides the base", inputs.len() - usize::from(has_base), self.non_base)
    }
}

/// How deltas lose elements before they are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sparsify {
    None,
    /// The smallest go.
    Magnitude,
    /// A coin decides.
    Random,
    /// The smallest and the largest go.
    Outliers,
    /// A coin decides, weighted by rank within the row.
    Ranked,
}

macro_rules! methods {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// A way of merging, by mergekit's names.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Method { $($(#[$doc])* $variant,)* }

        impl Method {
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant,)*];
            pub(crate) const fn name(self) -> &'static str { match self { $(Self::$variant => $name,)* } }
        }
    };
}

methods! {
    /// Weighted mean (arXiv 2203.05482).
    Linear = "linear";
    /// Along the great circle between two models.
    Slerp = "slerp";
    /// Slerp by weights, of models or of deltas, flat or by row or column.
    NuSlerp = "nuslerp";
    /// Barycentre on the hypersphere, one step in the tangent space.
    MultiSlerp = "multislerp";
    /// Karcher mean on the hypersphere (arXiv 2603.04972).
    Karcher = "karcher";
    /// Sum of deltas (arXiv 2212.04089).
    TaskArithmetic = "task_arithmetic";
    /// Trimmed deltas that agree in sign (arXiv 2306.01708).
    Ties = "ties";
    /// Randomly thinned deltas (arXiv 2311.03099).
    DareLinear = "dare_linear";
    /// The same, with sign consensus.
    DareTies = "dare_ties";
    /// Deltas without their smallest and largest (arXiv 2312.06795).
    Breadcrumbs = "breadcrumbs";
    /// The same, with sign consensus.
    BreadcrumbsTies = "breadcrumbs_ties";
    /// Deltas thinned by rank, with sign consensus (arXiv 2406.11617).
    Della = "della";
    /// The same, without.
    DellaLinear = "della_linear";
    /// Between base and mean, as far as deltas agree (arXiv 2403.19522).
    ModelStock = "model_stock";
    /// Select, calculate, erase (arXiv 2408.07990).
    Sce = "sce";
    /// Towards the second model where both are near.
    NearSwap = "nearswap";
    /// Takes what matters of the second model.
    ArceeFusion = "arcee_fusion";
    /// One model's tensors, scaled.
    Passthrough = "passthrough";
    /// Reinforced agent merging (arXiv 2601.13572).
    Ram = "ram";
    /// The same, rescaled per tensor.
    RamPlus = "ramplus_tl";
}

impl Method {
    pub(crate) fn from_name(name: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|method| method.name() == name).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|method| method.name()).collect();
            Error::invalid(format!("no merge method {name:?}; known: {}", known.join(", ")))
        })
    }

    pub(crate) fn contract(self) -> Contract {
        use Base::{Ignored, Optional, Required};
        let (base, inputs, non_base) = match self {
            Self::Linear | Self::Karcher => (Ignored, (1, ANY), (0, ANY)),
            Self::Passthrough => (Ignored, (1, 1), (0, ANY)),
            Self::Slerp | Self::NearSwap | Self::ArceeFusion => (Required, (2, 2), (0, ANY)),
            Self::NuSlerp => (Optional, (1, ANY), (2, 2)),
            Self::MultiSlerp => (Optional, (1, ANY), (1, ANY)),
            Self::ModelStock => (Required, (3, ANY), (0, ANY)),
            _ => (Required, (1, ANY), (0, ANY)),
        };
        Contract { base, inputs, non_base }
    }

    /// Whether each model has a weight.
    pub(crate) fn has_weights(self) -> bool {
        matches!(self, Self::Linear | Self::NuSlerp | Self::MultiSlerp) || self.arithmetic().is_some()
    }

    /// For the methods that add deltas: how they thin them, and whether signs must agree.
    pub(crate) fn arithmetic(self) -> Option<(Sparsify, bool)> {
        Some(match self {
            Self::TaskArithmetic => (Sparsify::None, false),
            Self::Ties => (Sparsify::Magnitude, true),
            Self::DareLinear => (Sparsify::Random, false),
            Self::DareTies => (Sparsify::Random, true),
            Self::Breadcrumbs => (Sparsify::Outliers, false),
            Self::BreadcrumbsTies => (Sparsify::Outliers, true),
            Self::Della => (Sparsify::Ranked, true),
            Self::DellaLinear => (Sparsify::Ranked, false),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_mergekit_refuses_is_refused() {
        let check = |name: &str, inputs: &[&str], base: Option<&str>| {
            Method::from_name(name).unwrap().contract().check(inputs, base).map_err(|error| error.to_string())
        };
        assert!(check("slerp", &["a", "b"], Some("a")).is_ok());
        assert!(check("slerp", &["a", "b", "c"], Some("a")).unwrap_err().contains("exactly 2"));
        assert!(check("slerp", &["a", "b"], None).unwrap_err().contains("base_model"));
        assert!(check("model_stock", &["a", "b"], Some("a")).unwrap_err().contains("at least 3"));
        assert!(check("ties", &["a", "b"], Some("c")).unwrap_err().contains("not among"));
        assert!(check("linear", &["a", "b"], Some("c")).is_ok());
        assert!(check("linear", &["a", "a"], None).unwrap_err().contains("same model"));
        assert!(check("nuslerp", &["a", "b", "c"], None).unwrap_err().contains("exactly 2"));
        assert!(check("nuslerp", &["a", "b", "c"], Some("c")).is_ok());
        assert!(check("passthrough", &["a", "b"], None).is_err());
        assert!(Method::from_name("magic").unwrap_err().to_string().contains("dare_ties"));
    }
}
