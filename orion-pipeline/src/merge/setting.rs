//! Parameters as merge configurations give them: a value, a gradient over the layers, or values by tensor name.

use std::collections::BTreeMap;

use orion_core::{Error, Result};
use serde_json::Value;

/// One parameter as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Setting {
    Scalar(Value),
    /// Points spread evenly over a slice's layers.
    Gradient(Vec<Value>),
    /// The first whose filter is part of the tensor's name counts.
    Conditional(Vec<(Option<String>, Setting)>),
}

/// Parameters of one place in a configuration.
pub(crate) type Settings = BTreeMap<String, Setting>;

pub(crate) fn parse_settings(value: &Value, place: &str) -> Result<Settings> {
    match value {
        Value::Null => Ok(Settings::new()),
        Value::Object(map) => map
            .iter()
            .map(|(name, value)| {
                let setting =
                    Setting::parse(value).map_err(|error| error.about(format!("{place}.{name}")))?;
                Ok((name.clone(), setting))
            })
            .collect(),
        _ => Err(Error::invalid("must be a mapping of names to values").about(place.to_owned())),
    }
}

impl Setting {
    fn parse(value: &Value) -> Result<Self> {
        let wrong = || Error::invalid("must be a value, a list of values, or a list of {filter, value}");
        match value {
            Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(Self::Scalar(value.clone())),
            Value::Object(_) => Ok(Self::Conditional(vec![Self::condition(value)?])),
            Value::Array(list) if list.iter().any(Value::is_object) => {
                list.iter().map(Self::condition).collect::<Result<_>>().map(Self::Conditional)
            }
            Value::Array(list) => {
                let plain = list.iter().all(|v| v.is_boolean() || v.is_number() || v.is_string());
                if plain { Ok(Self::Gradient(list.clone())) } else { Err(wrong()) }
            }
            Value::Null => Err(wrong()),
        }
    }

    fn condition(value: &Value) -> Result<(Option<String>, Self)> {
        let inner = value.get("value").ok_or_else(|| Error::invalid("a condition needs a value"))?;
        let filter = match value.get("filter") {
            None | Some(Value::Null) => None,
            Some(Value::String(filter)) => Some(filter.clone()),
            Some(_) => return Err(Error::invalid("a filter is a part of a tensor's name")),
        };
        match Self::parse(inner)? {
            Self::Conditional(_) => Err(Error::invalid("conditions cannot hold conditions")),
            setting => Ok((filter, setting)),
        }
    }

    /// The number for a tensor at `t` of its slice; `None` if no filter matches or the gradient has no points.
    pub(crate) fn number(&self, tensor: &str, t: f64) -> Result<Option<f64>> {
        match self.chosen(tensor) {
            None => Ok(None),
            Some(Self::Scalar(value)) => number(value).map(Some),
            Some(Self::Gradient(points)) => {
                let points = points.iter().map(number).collect::<Result<Vec<_>>>()?;
                let Some(last) = points.len().checked_sub(1) else { return Ok(None) };
                let scaled = t * last as f64;
                let first = (scaled as usize).min(last);
                let share = scaled - first as f64;
                Ok(Some((1.0 - share) * points[first] + share * points[(first + 1).min(last)]))
            }
            Some(Self::Conditional(_)) => Err(Error::invalid("conditions cannot hold conditions")),
        }
    }

    /// The flag for a tensor at `t` of its slice.
    pub(crate) fn flag(&self, tensor: &str, t: f64) -> Result<Option<bool>> {
        match self.chosen(tensor) {
            None => Ok(None),
            Some(Self::Scalar(value)) => flag(value).map(Some),
            Some(Self::Gradient(points)) => {
                let Some(last) = points.len().checked_sub(1) else { return Ok(None) };
                flag(&points[((t * last as f64) as usize).min(last)]).map(Some)
            }
            Some(Self::Conditional(_)) => Err(Error::invalid("conditions cannot hold conditions")),
        }
    }

    fn chosen(&self, tensor: &str) -> Option<&Self> {
        match self {
            Self::Conditional(list) => {
                let matches = |filter: &Option<String>| {
                    filter.as_ref().is_none_or(|filter| filter == "*" || tensor.contains(filter.as_str()))
                };
                list.iter().find(|(filter, _)| matches(filter)).map(|(_, setting)| setting)
            }
            plain => Some(plain),
        }
    }
}

fn number(value: &Value) -> Result<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        // YAML 1.1 reads 1e-4 as a string.
        Value::String(text) => text.trim().parse().ok(),
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        _ => None,
    };
    number
        .filter(|number: &f64| number.is_finite())
        .ok_or_else(|| Error::invalid(format!("{value} is not a finite number")))
}

fn flag(value: &Value) -> Result<bool> {
    let flag = match value {
        Value::Bool(flag) => Some(*flag),
        Value::Number(number) => match number.as_f64() {
            Some(0.0) => Some(false),
            Some(1.0) => Some(true),
            _ => None,
        },
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" | "t" | "1" => Some(true),
            "false" | "no" | "off" | "n" | "f" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    };
    flag.ok_or_else(|| Error::invalid(format!("{value} is neither true nor false")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(value: &Value, tensor: &str, t: f64) -> Option<f64> {
        Setting::parse(value).unwrap().number(tensor, t).unwrap()
    }

    #[test]
    fn gradients_interpolate_and_filters_choose_the_first_match() {
        assert_eq!(at(&json!(0.25), "x", 0.7), Some(0.25));
        assert_eq!(at(&json!("1e-4"), "x", 0.0), Some(1e-4));
        let gradient = json!([0.0, 1.0, 0.0]);
        assert_eq!(
            [0.0, 0.25, 0.5, 0.75, 1.0].map(|t| at(&gradient, "x", t).unwrap()),
            [0.0, 0.5, 1.0, 0.5, 0.0]
        );
        let by_name =
            json!([{"filter": "mlp", "value": [0.0, 2.0]}, {"filter": "attn", "value": 3}, {"value": 4}]);
        assert_eq!(at(&by_name, "layers.0.mlp.up", 0.5), Some(1.0));
        assert_eq!(at(&by_name, "layers.0.attn.q", 0.5), Some(3.0));
        assert_eq!(at(&by_name, "norm", 0.5), Some(4.0));
        assert_eq!(at(&json!([{"filter": "mlp", "value": 1}]), "norm", 0.0), None);
        assert_eq!(at(&json!([]), "x", 0.0), None);
        assert!(Setting::parse(&json!("high")).unwrap().number("x", 0.0).is_err());
        assert!(Setting::parse(&json!(null)).is_err());
        let flags = Setting::parse(&json!([true, false, true])).unwrap();
        assert_eq!(
            [0.0, 0.4, 0.5, 0.99, 1.0].map(|t| flags.flag("x", t).unwrap().unwrap()),
            [true, true, false, false, true]
        );
    }
}
