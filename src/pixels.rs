//! The formats in which images leave the library: floats as the network makes them, halves, and bytes for textures.

use half::f16;

use crate::{memory, Error, Result};

/// A format of finished images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32-bit floats, [n, channels, height, width], in [-1, 1].
    F32,
    /// 16-bit floats, otherwise the same.
    F16,
    /// Bytes, [n, height, width, 3].
    Rgb8,
    /// Bytes, [n, height, width, 4].
    Rgba8,
}

impl Format {
    /// Bytes of one pixel with `channels` channels, or an error where the format has no room for them.
    pub fn bytes_per_pixel(self, channels: usize) -> Result<usize> {
        match self {
            Format::F32 => Ok(channels * size_of::<f32>()),
            Format::F16 => Ok(channels * size_of::<f16>()),
            Format::Rgb8 | Format::Rgba8 if !matches!(channels, 1 | 3 | 4) => {
                let name = if self == Format::Rgb8 { "RGB8" } else { "RGBA8" };
                Err(Error::InvalidArgument(format!(
                    "format is {name} and channels is {channels}: RGB8 and RGBA8 need 1, 3 or 4 channels; use F32 or F16"
                )))
            }
            Format::Rgb8 => Ok(3),
            Format::Rgba8 => Ok(4),
        }
    }

    /// Writes images `[n, channels, size, size]` with values in [-1, 1] in this format.
    pub fn encode(self, images: &[f32], channels: usize, size: usize) -> Result<Vec<u8>> {
        let per_pixel = self.bytes_per_pixel(channels)?;
        let plane = size * size;
        let count = images.len() / (channels * plane).max(1);
        let bytes = count * plane * per_pixel;
        let mut out = memory::with_capacity(bytes)?;
        match self {
            Format::F32 => out.extend(images.iter().flat_map(|value| value.to_ne_bytes())),
            Format::F16 => out.extend(images.iter().flat_map(|&value| f16::from_f32(value).to_ne_bytes())),
            Format::Rgb8 | Format::Rgba8 => {
                for image in images.chunks_exact(channels * plane) {
                    interleave(image, plane, per_pixel, &mut out);
                }
            }
        }
        Ok(out)
    }
}

/// Appends one image's planes `[channels, plane]` pixel by pixel: gray is repeated, a missing alpha is opaque.
fn interleave(image: &[f32], plane: usize, per_pixel: usize, out: &mut Vec<u8>) {
    let planes: Vec<&[f32]> = image.chunks_exact(plane).collect();
    let gray = planes.len() < 3;
    let sources: Vec<Option<&[f32]>> =
        (0..per_pixel).map(|i| if gray && i < 3 { planes.first() } else { planes.get(i) }.copied()).collect();
    for pixel in 0..plane {
        for source in &sources {
            out.push(source.and_then(|values| values.get(pixel)).map_or(255, |&value| byte(value)));
        }
    }
}

/// [-1, 1] to 0..=255, rounded to the nearest.
fn byte(value: f32) -> u8 {
    ((value + 1.0) * 127.5).round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_rounded_and_interleaved() {
        let image = [-1.0, 1.0, 0.0, 0.5, -0.5, 0.25, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0];
        let out = Format::Rgb8.encode(&image, 3, 2).unwrap();
        assert_eq!(out, [0, 64, 128, 255, 159, 128, 128, 255, 128, 191, 0, 128]);
        let rgba = Format::Rgba8.encode(&image[..4], 1, 2).unwrap();
        assert_eq!(rgba, [0, 0, 0, 255, 255, 255, 255, 255, 128, 128, 128, 255, 191, 191, 191, 255]);
    }

    #[test]
    fn halves_and_odd_channel_counts() {
        let out = Format::F16.encode(&[0.5, -1.0], 2, 1).unwrap();
        assert_eq!(out, [f16::from_f32(0.5).to_ne_bytes(), f16::from_f32(-1.0).to_ne_bytes()].concat());
        let error = Format::Rgb8.encode(&[0.0; 2], 2, 1).unwrap_err();
        assert!(error.to_string().contains("channels is 2"), "{error}");
    }
}
