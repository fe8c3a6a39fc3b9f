//! Pictures as tensors: resized to what the network takes, channels first, mean and scale.

use std::path::Path;

use image::imageops::FilterType;
use image::{ImageError, ImageReader};
use ncs2::ErrorKind;
use ncs2::blob::{DataType, IoTensor};

use super::{Array, Values, layout, shape_text};
use crate::cli::ImageArgs;
use crate::failure::{Failure, Result};

/// Reads a picture for `tensor`: `(pixel − mean) / scale`, bilinear, red first unless `--bgr`.
pub fn read(path: &Path, tensor: &IoTensor, args: &ImageArgs) -> Result<Array> {
    let bad = |expected: String, found: String, hint: &str| {
        Failure::new(
            ErrorKind::InvalidInput,
            format!("{}: expected {expected}, found {found}", path.display()),
            hint,
        )
    };
    let dim = |digit| tensor.order.position(digit).and_then(|p| tensor.dims.get(p)).map(|&d| d as usize);
    let shape = layout::shape(tensor);
    let (channels, height, width) = match (dim(3), dim(2), dim(1)) {
        (Some(c @ (1 | 3)), Some(h), Some(w)) if c * h * w == layout::elements(tensor) => (c, h, w),
        _ => {
            let expected =
                format!("a .npy or .bin for input {} of shape {}", tensor.name, shape_text(&shape));
            return Err(bad(expected, "a picture".into(), "pictures fit inputs of 1 or 3 channels"));
        }
    };
    let prepared = !args.mean.is_empty() || !args.scale.is_empty();
    if prepared && !matches!(tensor.dtype, DataType::F16 | DataType::F32) {
        return Err(bad(
            format!("{} pixels for input {}", tensor.dtype.as_str(), tensor.name),
            "--mean or --scale".into(),
            "leave them out: a network that takes u8 does this itself",
        ));
    }
    let mean = per_channel("--mean", &args.mean, channels, 0.0)?;
    let scale = per_channel("--scale", &args.scale, channels, 1.0)?;

    let reader = ImageReader::open(path)
        .and_then(ImageReader::with_guessed_format)
        .map_err(|e| Failure::file(path, "read", &e))?;
    let picture = reader.decode().map_err(|e| match e {
        ImageError::IoError(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => {
            Failure::file(path, "read", &e)
        }
        e => bad("a .png or .jpg picture".into(), e.to_string(), "convert it to .png"),
    })?;
    let (w, h) = (u32::try_from(width).unwrap_or(u32::MAX), u32::try_from(height).unwrap_or(u32::MAX));
    let pixels = if channels == 3 {
        let rgb = picture.to_rgb8();
        image::imageops::resize(&rgb, w, h, FilterType::Triangle).into_raw()
    } else {
        let gray = picture.to_luma8();
        image::imageops::resize(&gray, w, h, FilterType::Triangle).into_raw()
    };
    let plane = |c: usize| {
        let c = if args.bgr { channels - 1 - c } else { c };
        pixels.iter().skip(c).step_by(channels).copied()
    };
    let values = if prepared {
        let prepare = |c: usize| plane(c).map(move |p| (f32::from(p), c));
        let value = |(p, c): (f32, usize)| (p - mean[c]) / scale[c];
        Values::F32((0..channels).flat_map(prepare).map(value).collect())
    } else {
        Values::U8((0..channels).flat_map(plane).collect())
    };
    // C, H, W are in this order in every shape that has one N or none.
    Ok(Array { shape, values })
}

fn per_channel(flag: &str, given: &[f32], channels: usize, default: f32) -> Result<Vec<f32>> {
    let usage = |found: String| {
        Failure::usage(
            format!("{flag}: expected one number or {channels}, one for each channel, found {found}"),
            "see `ncs2ctl run --help`",
        )
    };
    match given {
        [] => Ok(vec![default; channels]),
        _ if given.iter().any(|x| !x.is_finite()) => Err(usage("one that is not finite".into())),
        _ if flag == "--scale" && given.contains(&0.0) => Err(usage("a zero".into())),
        [one] => Ok(vec![*one; channels]),
        all if all.len() == channels => Ok(all.to_vec()),
        all => Err(usage(all.len().to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgb, RgbImage};
    use ncs2::blob::Order;

    fn tensor(dtype: DataType) -> IoTensor {
        let e = dtype.bytes() as u32;
        IoTensor {
            name: "data".into(),
            dtype,
            order: Order(0x4321),
            dims: vec![2, 1, 3, 1],
            strides: vec![e, 2 * e, 2 * e, 6 * e],
            offset: 0,
        }
    }

    #[test]
    fn pixels_become_planes() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("p.png");
        let mut picture = RgbImage::new(2, 1);
        picture.put_pixel(0, 0, Rgb([10, 20, 30]));
        picture.put_pixel(1, 0, Rgb([40, 50, 60]));
        picture.save(&path).expect("written");
        let plain = ImageArgs::default();
        let array = read(&path, &tensor(DataType::U8), &plain).expect("fits");
        assert_eq!(array.values, Values::U8(vec![10, 40, 20, 50, 30, 60]));
        let bgr = ImageArgs { bgr: true, mean: vec![10.0], scale: vec![10.0] };
        let array = read(&path, &tensor(DataType::F16), &bgr).expect("fits");
        assert_eq!(array.values, Values::F32(vec![2.0, 5.0, 1.0, 4.0, 0.0, 3.0]));
        assert!(read(&path, &tensor(DataType::U8), &bgr).is_err(), "mean on u8");
        let two = ImageArgs { mean: vec![1.0, 2.0], ..plain };
        assert!(read(&path, &tensor(DataType::F16), &two).is_err(), "two means for three channels");
    }
}
