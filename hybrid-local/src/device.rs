//! Where tensors are computed: chosen at run time from what the build and the machine have.
//!
//! The one module that knows which hardware features the crate was built with.

use std::{fmt, str::FromStr};

use candle_core::utils::{cuda_is_available, metal_is_available};
#[cfg(feature = "decoder")]
use candle_core::{DType, Tensor};
use hybrid_core::{Error, ErrorKind, Result};

/// Which device to compute on: `auto`, `cpu`, `metal[:n]` or `cuda[:n]` as text.
///
/// ```
/// use hybrid_local::DeviceChoice;
///
/// assert_eq!("cuda:1".parse::<DeviceChoice>()?, DeviceChoice::Cuda(1));
/// assert_eq!("metal".parse::<DeviceChoice>()?.to_string(), "metal:0");
/// assert!("tpu".parse::<DeviceChoice>().is_err());
/// # Ok::<(), hybrid_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// The first CUDA device, else the first Metal device, else the processor: whatever the build has and the machine offers.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The Metal device with this number, from 0. Needs the feature `metal`.
    Metal(usize),
    /// The CUDA device with this number, from 0. Needs the feature `cuda`.
    Cuda(usize),
}

/// A device that is open and ready to compute. Clones share it.
///
/// ```
/// use hybrid_local::{Device, DeviceChoice};
///
/// let device = Device::open(DeviceChoice::Cpu)?;
/// assert_eq!(device.to_string(), "cpu");
/// # Ok::<(), hybrid_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Device {
    inner: candle_core::Device,
    name: String,
}

impl Device {
    /// Opens the device chosen.
    ///
    /// With [`DeviceChoice::Auto`] an accelerator that does not open is passed over with a warning in the log; [`Device`]'s text says what was taken.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) that names the feature if the build lacks it,
    /// [`ResourceExhausted`](ErrorKind::ResourceExhausted) if the machine has no such device or it does not answer.
    pub fn open(choice: DeviceChoice) -> Result<Self> {
        match choice {
            DeviceChoice::Cpu => Ok(Self::cpu()),
            // Asked first: parts of a build without CUDA panic where they should answer.
            DeviceChoice::Cuda(_) if !cuda_is_available() => Err(lacks_feature(choice, "cuda")),
            DeviceChoice::Cuda(ordinal) => Self::opened(choice, candle_core::Device::new_cuda(ordinal)),
            DeviceChoice::Metal(_) if !metal_is_available() => Err(lacks_feature(choice, "metal")),
            DeviceChoice::Metal(ordinal) => Self::opened(choice, candle_core::Device::new_metal(ordinal)),
            DeviceChoice::Auto => Ok(Self::auto()),
        }
    }

    /// The processor.
    pub fn cpu() -> Self {
        Self { inner: candle_core::Device::Cpu, name: "cpu".to_owned() }
    }

    /// The tensor library's handle.
    pub(crate) fn tensors(&self) -> &candle_core::Device {
        &self.inner
    }

    /// Whether work from several threads runs side by side on it.
    #[cfg(feature = "classifier")]
    pub(crate) fn is_parallel(&self) -> bool {
        self.inner.is_cpu()
    }

    /// Whether it multiplies matrices of bfloat16. The processor would widen them first, which takes longer than to have them wide.
    #[cfg(feature = "decoder")]
    pub(crate) fn has_bf16(&self) -> bool {
        let product = || {
            let ones = Tensor::ones((2, 32), DType::BF16, &self.inner)?;
            ones.matmul(&ones.t()?)?.to_dtype(DType::F32)?.to_vec2::<f32>()
        };
        !self.inner.is_cpu() && product().is_ok_and(|product| product == [[32.0; 2]; 2])
    }

    fn auto() -> Self {
        let built = [(cuda_is_available(), DeviceChoice::Cuda(0)), (metal_is_available(), DeviceChoice::Metal(0))];
        for (_, choice) in built.into_iter().filter(|(available, _)| *available) {
            match Self::open(choice) {
                Ok(device) => return device,
                Err(error) => tracing::warn!(%error, "device passed over"),
            }
        }
        Self::cpu()
    }

    fn opened(choice: DeviceChoice, opened: candle_core::Result<candle_core::Device>) -> Result<Self> {
        match opened {
            Ok(inner) => Ok(Self { inner, name: choice.to_string() }),
            Err(error) => {
                Err(Error::new(ErrorKind::ResourceExhausted, "open device", "the machine does not offer this device")
                    .with("device", choice)
                    .with_source(error))
            }
        }
    }
}

fn lacks_feature(choice: DeviceChoice, feature: &'static str) -> Error {
    Error::unsupported("open device", "this build cannot use the device; build with the feature, or choose cpu or auto")
        .with("device", choice)
        .with("feature", feature)
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.name)
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Metal(ordinal) => write!(f, "metal:{ordinal}"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, ordinal) = match text.split_once(':') {
            Some((name, ordinal)) => (name, ordinal.parse().ok()),
            None => (text, Some(0)),
        };
        match (name, ordinal) {
            ("auto", _) if text == name => Ok(Self::Auto),
            ("cpu", _) if text == name => Ok(Self::Cpu),
            ("metal", Some(ordinal)) => Ok(Self::Metal(ordinal)),
            ("cuda", Some(ordinal)) => Ok(Self::Cuda(ordinal)),
            _ => {
                Err(Error::invalid("parse device", "expected auto, cpu, metal, metal:<number>, cuda or cuda:<number>")
                    .with("found", format_args!("{text:?}")))
            }
        }
    }
}

/// Converts the tensor library's errors, for one operation.
pub(crate) fn tensor_error(operation: &'static str) -> impl Fn(candle_core::Error) -> Error + Copy {
    move |error| Error::internal(operation, "the tensor library failed").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_chosen_by_name() {
        let cases = [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("metal", DeviceChoice::Metal(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ];
        for (text, choice) in cases {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), choice);
            assert_eq!(choice.to_string().parse::<DeviceChoice>().unwrap(), choice);
        }
        for bad in ["", "cpu:0", "auto:1", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            assert_eq!(bad.parse::<DeviceChoice>().unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }

    #[test]
    fn a_device_that_the_build_lacks_is_refused_by_the_name_of_its_feature() {
        for (available, choice, feature) in [
            (cuda_is_available(), DeviceChoice::Cuda(0), "cuda"),
            (metal_is_available(), DeviceChoice::Metal(0), "metal"),
        ] {
            if !available {
                let error = Device::open(choice).unwrap_err();
                assert_eq!((error.kind(), error.context("feature")), (ErrorKind::Unsupported, Some(feature)));
            }
        }
    }

    #[test]
    fn some_device_is_always_there() {
        assert!(!Device::open(DeviceChoice::Auto).unwrap().to_string().is_empty());
    }
}
