//! `cpu-config`: a CPU template of one's own.

use std::path::PathBuf;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is changed of the CPU that a guest sees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CpuSpec {
    /// KVM capabilities that are asked for beside the usual ones, or, with `!`, are not.
    pub kvm_capabilities: Vec<Capability>,
    /// Changes of CPUID.
    pub cpuid_modifiers: Vec<CpuidModifier>,
    /// Changes of model-specific registers.
    pub msr_modifiers: Vec<MsrModifier>,
}

/// A KVM capability's number, as text: `121`, or `!121` to leave it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String")]
pub struct Capability(String);

impl TryFrom<String> for Capability {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = text.strip_prefix('!').unwrap_or(&text);
        // `parse` takes a sign.
        let is_plain = number.bytes().all(|b| b.is_ascii_digit());
        match number.parse::<u32>() {
            Ok(_) if is_plain => Ok(Self(text)),
            _ => Err(format!("`{text}` is not a capability such as 121 or !121")),
        }
    }
}

impl Capability {
    /// Its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        let number = self.0.strip_prefix('!').unwrap_or(&self.0);
        // Proved when it was made.
        number.parse().unwrap_or_default()
    }

    /// Whether it is asked for; else it is not to be looked for.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        !self.0.starts_with('!')
    }
}

/// A number as text: `0x1f`, `0b11111` or `31`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String")]
pub struct NumberText(String);

impl TryFrom<String> for NumberText {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match parse_number(&text) {
            Some(_) => Ok(Self(text)),
            None => Err(format!(
                "`{text}` is not a number of 32 bits such as 0x1f, 0b11111 or 31"
            )),
        }
    }
}

impl NumberText {
    /// The number.
    #[must_use]
    pub fn value(&self) -> u32 {
        // Proved when it was made.
        parse_number(&self.0).unwrap_or_default()
    }
}

fn parse_number(text: &str) -> Option<u32> {
    let (digits, radix) = match (text.strip_prefix("0x"), text.strip_prefix("0b")) {
        (Some(digits), _) => (digits, 16),
        (_, Some(digits)) => (digits, 2),
        _ => (text, 10),
    };
    // `from_str_radix` takes a sign.
    let is_plain = digits.bytes().all(|b| b.is_ascii_alphanumeric());
    u32::from_str_radix(digits, radix).ok().filter(|_| is_plain)
}

/// Bits from the highest to the lowest, as text: `0b`, then `0`, `1`, or `x` for a bit that stays; `_` for the eye.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String")]
pub struct Bitmap(String);

impl TryFrom<String> for Bitmap {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.strip_prefix("0b").unwrap_or_default();
        let bits = digits.bytes().filter(|b| *b != b'_').count();
        let plain = digits
            .bytes()
            .all(|b| matches!(b, b'0' | b'1' | b'x' | b'_'));
        if plain && (1..=64).contains(&bits) {
            Ok(Self(text))
        } else {
            Err(format!("`{text}` is not a bitmap such as 0b01xx"))
        }
    }
}

impl Bitmap {
    /// How many bits it has, 1–64.
    #[must_use]
    pub fn width(&self) -> usize {
        self.bits().count()
    }

    fn bits(&self) -> impl Iterator<Item = u8> {
        self.0.bytes().skip(2).filter(|b| *b != b'_')
    }

    /// Which bits are set by the bitmap, and to what.
    #[must_use]
    pub fn mask_and_value(&self) -> (u64, u64) {
        self.bits().fold((0, 0), |(mask, value), bit| match bit {
            b'0' => (mask << 1 | 1, value << 1),
            b'1' => (mask << 1 | 1, value << 1 | 1),
            _ => (mask << 1, value << 1),
        })
    }
}

/// Changes of one leaf of CPUID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuidModifier {
    /// EAX of the question.
    pub leaf: NumberText,
    /// ECX of the question.
    pub subleaf: NumberText,
    /// KVM's flags of the entry.
    pub flags: u32,
    /// What is changed.
    pub modifiers: Vec<RegisterModifier>,
}

/// A change of one register of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterModifier {
    /// Which register.
    pub register: CpuidRegister,
    /// Its bits.
    pub bitmap: Bitmap,
}

/// The registers of an answer of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CpuidRegister {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// A change of a model-specific register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MsrModifier {
    /// Which register.
    pub addr: NumberText,
    /// Its bits.
    pub bitmap: Bitmap,
}

/// `cpu-config` of a configuration file: there it may be the path of a file too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum CpuConfig {
    /// As it is.
    Spec(CpuSpec),
    /// A file with the same JSON.
    File(PathBuf),
}

impl<'de> Deserialize<'de> for CpuConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not `untagged`, whose error says nothing of what is wrong.
        deserializer.deserialize_any(CpuConfigVisitor)
    }
}

struct CpuConfigVisitor;

impl<'de> Visitor<'de> for CpuConfigVisitor {
    type Value = CpuConfig;

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("a CPU configuration, or the path of a file with one")
    }

    fn visit_str<E: de::Error>(self, path: &str) -> Result<CpuConfig, E> {
        Ok(CpuConfig::File(path.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<CpuConfig, A::Error> {
        CpuSpec::deserialize(MapAccessDeserializer::new(map)).map(CpuConfig::Spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitmap_says_which_bits_and_what() {
        let bitmap = Bitmap::try_from("0b1_0x1".to_owned()).unwrap();
        assert_eq!(bitmap.mask_and_value(), (0b1101, 0b1001));
        assert_eq!(bitmap.width(), 4);
        let all = Bitmap::try_from(format!("0b{}", "1".repeat(64))).unwrap();
        assert_eq!(all.mask_and_value(), (u64::MAX, u64::MAX));
        for text in ["", "0b", "01", "0b2", &format!("0b{}", "1".repeat(65))] {
            assert!(Bitmap::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_capability_is_asked_for_or_not() {
        let capability = |text: &str| Capability::try_from(text.to_owned());
        let read = |text| {
            let capability = capability(text).unwrap();
            (capability.number(), capability.is_needed())
        };
        assert_eq!((read("121"), read("!56")), ((121, true), (56, false)));
        for text in ["", "!", "-1", "+1", "!+1", "!!1", "0x79", "4294967296"] {
            assert!(capability(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_read_in_three_bases() {
        for (text, number) in [("0x1F", 31), ("0b11", 3), ("12", 12)] {
            assert_eq!(
                NumberText::try_from(text.to_owned()).unwrap().value(),
                number
            );
        }
        for text in ["", "0x", "+1", "-1", "0x+1", "0x1_0", "4294967296", "x"] {
            assert!(NumberText::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_or_the_thing_itself() {
        let of = |json: &str| serde_json::from_str::<CpuConfig>(json).map_err(|e| e.to_string());
        assert_eq!(of(r#""a.json""#), Ok(CpuConfig::File("a.json".into())));
        assert_eq!(of("{}"), Ok(CpuConfig::Spec(CpuSpec::default())));
        assert!(of(r#"{"x":1}"#).unwrap_err().contains("unknown field `x`"));
        assert!(of("1").unwrap_err().contains("a CPU configuration"));
    }
}
