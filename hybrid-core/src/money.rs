//! Money, prices and metered use.

use std::{fmt, ops::Neg, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Error, Result, id::serde_as_text};

const PICO: i128 = 1_000_000_000_000;

/// An ISO 4217 currency code, such as `USD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency([u8; 3]);

impl Currency {
    /// United States dollar.
    pub const USD: Self = Self(*b"USD");
    /// Euro.
    pub const EUR: Self = Self(*b"EUR");
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&byte| write!(f, "{}", char::from(byte)))
    }
}

impl FromStr for Currency {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match <[u8; 3]>::try_from(text.as_bytes()) {
            Ok(code) if code.iter().all(u8::is_ascii_uppercase) => Ok(Self(code)),
            _ => Err(Error::invalid("parse currency", "expected three capital letters, such as USD")
                .with("found", format_args!("{text:?}"))),
        }
    }
}

serde_as_text!(Currency);

/// An amount of money, exact to the millionth of a millionth of its currency's unit: the price of one token fits.
///
/// ```
/// use hybrid_core::{Currency, Money};
///
/// let price = Money::new(Currency::USD, "0.0000035").unwrap();
/// assert_eq!(price.times(2_000_000).unwrap().to_string(), "7 USD");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Money {
    /// The currency.
    pub currency: Currency,
    /// The amount in 10⁻¹² of the currency's unit.
    pub pico: i128,
}

impl Money {
    /// Nothing, in `currency`.
    pub fn zero(currency: Currency) -> Self {
        Self { currency, pico: 0 }
    }

    /// An amount from its decimal text, at most twelve digits after the point.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if the text is no such number.
    pub fn new(currency: Currency, decimal: &str) -> Result<Self> {
        let invalid = || {
            Error::invalid("parse money", "expected a decimal number with at most 12 digits after the point")
                .with("found", format_args!("{decimal:?}"))
        };
        let (negative, digits) = match decimal.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, decimal),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || fraction.len() > 12 {
            return Err(invalid());
        }
        let whole: i128 = whole.parse().map_err(|_| invalid())?;
        let fraction: i128 = format!("{fraction:0<12}").parse().map_err(|_| invalid())?;
        let pico = whole.checked_mul(PICO).and_then(|pico| pico.checked_add(fraction)).ok_or_else(invalid)?;
        Ok(Self { currency, pico: if negative { pico.neg() } else { pico } })
    }

    /// The sum of two amounts of one currency.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for two currencies or an overflow.
    pub fn plus(self, other: Self) -> Result<Self> {
        if self.currency != other.currency {
            return Err(Error::invalid("add money", "the amounts have different currencies; convert one first")
                .with("left", self)
                .with("right", other));
        }
        let pico = self.pico.checked_add(other.pico).ok_or_else(|| Error::invalid("add money", "the sum overflows"))?;
        Ok(Self { pico, ..self })
    }

    /// This amount `count` times.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) on overflow.
    pub fn times(self, count: u64) -> Result<Self> {
        let pico = self
            .pico
            .checked_mul(count.into())
            .ok_or_else(|| Error::invalid("multiply money", "the product overflows"))?;
        Ok(Self { pico, ..self })
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let amount = self.pico.unsigned_abs();
        let (whole, fraction) = (amount / PICO.unsigned_abs(), amount % PICO.unsigned_abs());
        if self.pico < 0 {
            f.write_str("-")?;
        }
        write!(f, "{whole}")?;
        if fraction != 0 {
            write!(f, ".{}", format!("{fraction:012}").trim_end_matches('0'))?;
        }
        write!(f, " {}", self.currency)
    }
}

/// What one call used. Zero means none; a backend that cannot count leaves the field zero.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Input tokens that were processed, without those read from or written to a cache.
    pub input_tokens: u64,
    /// Output tokens, reasoning included.
    pub output_tokens: u64,
    /// Input tokens read from a prompt cache.
    pub cache_read_tokens: u64,
    /// Input tokens written to a prompt cache.
    pub cache_write_tokens: u64,
    /// The part of the output tokens that was reasoning.
    pub reasoning_tokens: u64,
    /// Audio heard, in seconds.
    pub audio_seconds: f64,
    /// Images made.
    pub images: u64,
}

impl Usage {
    /// All input tokens: fresh, read from a cache and written to one.
    pub fn total_input_tokens(&self) -> u64 {
        self.input_tokens.saturating_add(self.cache_read_tokens).saturating_add(self.cache_write_tokens)
    }
}

/// What a backend charges, per unit of [`Usage`]. All amounts have one currency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Per million fresh input tokens.
    pub input: Money,
    /// Per million output tokens.
    pub output: Money,
    /// Per million input tokens read from a cache; as `input` where absent.
    pub cache_read: Option<Money>,
    /// Per million input tokens written to a cache; as `input` where absent.
    pub cache_write: Option<Money>,
    /// Per second of audio.
    pub audio_second: Option<Money>,
    /// Per image.
    pub image: Option<Money>,
}

impl Price {
    /// What `usage` costs, rounded up to the pico-unit.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) on overflow, mixed currencies, or a use that is not a finite number.
    pub fn of(&self, usage: &Usage) -> Result<Money> {
        let tokens = [
            (self.input, usage.input_tokens),
            (self.output, usage.output_tokens),
            (self.cache_read.unwrap_or(self.input), usage.cache_read_tokens),
            (self.cache_write.unwrap_or(self.input), usage.cache_write_tokens),
        ];
        let mut total = Money::zero(self.input.currency);
        for (per_million, count) in tokens {
            let millionfold = per_million.times(count)?;
            let pico = millionfold.pico.div_euclid(1_000_000) + i128::from(millionfold.pico.rem_euclid(1_000_000) != 0);
            total = total.plus(Money { pico, ..millionfold })?;
        }
        if let Some(per_second) = self.audio_second {
            if !usage.audio_seconds.is_finite() || usage.audio_seconds < 0.0 {
                return Err(Error::invalid("price use", "audio seconds are not a finite number of at least zero"));
            }
            // Milliseconds are as fine as audio is billed; `as` saturates.
            let millis = (usage.audio_seconds * 1000.0).ceil() as u64;
            let thousandfold = per_second.times(millis)?;
            total = total.plus(Money { pico: thousandfold.pico.div_euclid(1000), ..thousandfold })?;
        }
        if let Some(per_image) = self.image {
            total = total.plus(per_image.times(usage.images)?)?;
        }
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn usd(decimal: &str) -> Money {
        Money::new(Currency::USD, decimal).unwrap()
    }

    #[test]
    fn money_reads_what_it_writes() {
        for (text, shown) in
            [("0", "0 USD"), ("-1.5", "-1.5 USD"), ("0.000000000001", "0.000000000001 USD"), ("12.340", "12.34 USD")]
        {
            assert_eq!(usd(text).to_string(), shown);
        }
        for bad in ["", ".", "1e3", "1.0000000000001", "--1", "1,5", "999999999999999999999999999999"] {
            assert!(Money::new(Currency::USD, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn currencies_do_not_mix() {
        assert!(usd("1").plus(Money::zero(Currency::EUR)).is_err());
        assert!("usd".parse::<Currency>().is_err());
    }

    #[test]
    fn a_call_is_priced_by_token_kind() {
        let price = Price {
            input: usd("3"),
            output: usd("15"),
            cache_read: Some(usd("0.3")),
            cache_write: Some(usd("3.75")),
            audio_second: None,
            image: None,
        };
        let usage = Usage {
            input_tokens: 1_000,
            output_tokens: 200,
            cache_read_tokens: 10_000,
            cache_write_tokens: 100,
            ..Usage::default()
        };
        assert_eq!(price.of(&usage).unwrap(), usd("0.009375"));
        assert_eq!(usage.total_input_tokens(), 11_100);
    }

    proptest! {
        #[test]
        fn any_amount_survives_its_text(pico in -(1i128 << 90)..(1i128 << 90)) {
            let money = Money { currency: Currency::EUR, pico };
            let text = money.to_string();
            prop_assert_eq!(Money::new(Currency::EUR, text.trim_end_matches(" EUR")).unwrap(), money);
        }
    }
}
