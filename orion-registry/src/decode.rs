//! Serde over the span-keeping tree. Members the schema step found broken are skipped, so that the rest of an
//! entry can still be looked at.

use std::collections::HashSet;
use std::fmt;

use serde::de::{self, IntoDeserializer, Visitor};

use crate::json::{Member, Node, Value};

/// Values that broke the schema, by first byte.
pub(crate) type Broken = HashSet<usize>;

/// Why a tree that passed the schema could not become a Rust value.
#[derive(Debug)]
pub(crate) struct DecodeError(String);

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// Decodes `node`.
pub(crate) fn decode<T: de::DeserializeOwned>(node: &Node<'_>, broken: &Broken) -> Result<T, DecodeError> {
    T::deserialize(Decoder { node, broken })
}

#[derive(Clone, Copy)]
struct Decoder<'a, 't> {
    node: &'a Node<'t>,
    broken: &'a Broken,
}

impl<'de> de::Deserializer<'de> for Decoder<'_, '_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(text) => number(text, visitor),
            Value::String(text) => visitor.visit_str(text),
            Value::Array(elements) => visitor.visit_seq(Elements { rest: elements, broken: self.broken }),
            Value::Object(members) => {
                visitor.visit_map(Members { rest: members, value: None, broken: self.broken })
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if self.node.value == Value::Null { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match &self.node.value {
            Value::String(text) => visitor.visit_enum(text.as_ref().into_deserializer()),
            _ => Err(de::Error::custom("expected a string")),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// JSON knows no integers: `8e3` and `8000.0` are the integer 8000.
fn number<'de, V: Visitor<'de>>(text: &str, visitor: V) -> Result<V::Value, DecodeError> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if let Ok(value) = text.parse::<u64>() {
        return visitor.visit_u64(value);
    }
    if let Ok(value) = text.parse::<i64>() {
        return visitor.visit_i64(value);
    }
    let value: f64 = text.parse().map_err(de::Error::custom)?;
    #[allow(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
    if value.fract() == 0.0 && value.abs() < EXACT {
        let whole = value as i64;
        return match u64::try_from(whole) {
            Ok(value) => visitor.visit_u64(value),
            Err(_) => visitor.visit_i64(whole),
        };
    }
    visitor.visit_f64(value)
}

struct Elements<'a, 't> {
    rest: &'a [Node<'t>],
    broken: &'a Broken,
}

impl<'de> de::SeqAccess<'de> for Elements<'_, '_> {
    type Error = DecodeError;

    fn next_element_seed<T: de::DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        let Some((node, rest)) = self.rest.split_first() else { return Ok(None) };
        self.rest = rest;
        seed.deserialize(Decoder { node, broken: self.broken }).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

struct Members<'a, 't> {
    rest: &'a [Member<'t>],
    value: Option<&'a Node<'t>>,
    broken: &'a Broken,
}

impl<'de> de::MapAccess<'de> for Members<'_, '_> {
    type Error = DecodeError;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        while let Some((member, rest)) = self.rest.split_first() {
            self.rest = rest;
            if self.broken.is_empty() || !self.broken.contains(&member.value.start) {
                self.value = Some(&member.value);
                return seed.deserialize(member.key.as_ref().into_deserializer()).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DecodeError> {
        let node = self.value.take().expect("serde asks for a value after its key");
        seed.deserialize(Decoder { node, broken: self.broken })
    }
}
