"""Triggers to look at, and how well they hide."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from otbr_jax import InputError
from otbr_jax.report.gallery import Example, amplification, figure, overview, render
from otbr_jax.report.quality import Quality, image_quality


def pictures(*shape, seed=0):
    """Smooth random uint8 images and the same with noise."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.uniform(0, 255, shape), (0, 1, 1, 0))
    return tuple(np.clip(images, 0, 255).astype(np.uint8) for images in (smooth, smooth + rng.normal(0, 20, shape)))


def blurred(image):
    """An 11 pixel wide Gaussian of 1.5, borders continued."""
    return gaussian_filter(image, (1.5, 1.5, 0), mode="nearest", radius=(5, 5, 0))


def reference_ssim(a, b):
    """Written from the definition, in float64 on another library."""
    a, b = a / 255.0, b / 255.0
    mean_a, mean_b = blurred(a), blurred(b)
    spread_a, spread_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    shared = blurred(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    upper = (2 * mean_a * mean_b + c1) * (2 * shared + c2)
    return np.mean(upper / ((mean_a**2 + mean_b**2 + c1) * (spread_a + spread_b + c2)))


@pytest.mark.parametrize("shape", [(3, 8, 8, 1), (2, 5, 9, 3), (2, 16, 16, 1), (300, 12, 12, 3)])
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_quality_is_that_of_the_definitions(shape, array):
    clean, triggered = pictures(*shape)
    quality = image_quality(array(clean), array(triggered))
    differences = clean.astype(float) - triggered.astype(float)
    psnr = np.mean(10 * np.log10(255**2 / np.mean(differences**2, axis=(1, 2, 3))))
    assert quality.psnr == pytest.approx(psnr, rel=1e-5)
    assert quality.ssim == pytest.approx(
        np.mean([reference_ssim(*pair) for pair in zip(clean, triggered, strict=True)]), rel=1e-5
    )
    assert quality.largest == np.max(np.abs(differences))
    assert (type(quality.psnr), type(quality.ssim), type(quality.largest)) == (float, float, int)


def test_quality_of_a_constant_change_by_hand():
    quality = image_quality(np.full((2, 9, 9, 1), 100, np.uint8), np.full((2, 9, 9, 1), 110, np.uint8))
    a, b, c = 100 / 255, 110 / 255, 0.01**2
    assert quality.psnr == pytest.approx(20 * np.log10(255 / 10), rel=1e-5)
    assert quality.ssim == pytest.approx((2 * a * b + c) / (a * a + b * b + c), rel=1e-5)
    assert quality.largest == 10


def test_images_that_the_trigger_leaves_alone_have_no_psnr():
    clean, triggered = pictures(4, 8, 8, 3)
    triggered[2:] = clean[2:]
    both, changed = image_quality(clean, triggered), image_quality(clean[:2], triggered[:2])
    assert both.psnr == pytest.approx(changed.psnr)
    assert both.ssim == pytest.approx((changed.ssim + 1) / 2)
    assert image_quality(clean, clean) == Quality(None, 1.0, 0)
    noise = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), np.uint8)
    assert image_quality(noise, noise).psnr is None


def test_a_trigger_counts_in_a_corner_as_elsewhere():
    clean = np.full((1, 32, 32, 1), 60, np.uint8)
    corner, centre = clean.copy(), clean.copy()
    corner[:, -3:, -3:], centre[:, 15:18, 15:18] = 255, 255
    ssim = {name: image_quality(clean, images).ssim for name, images in (("corner", corner), ("centre", centre))}
    assert ssim["centre"] < ssim["corner"] < 0.97


@pytest.mark.parametrize(
    ("clean", "triggered", "message"),
    [
        (np.zeros((2, 8, 8, 1)), np.zeros((2, 8, 8, 1), np.uint8), r"clean: expected uint8 images .*, found float64"),
        (np.zeros((2, 8, 8, 1), np.uint8), np.zeros((2, 8, 8), np.uint8), r"triggered: expected uint8 .* \(2, 8, 8\)"),
        (np.zeros((0, 8, 8, 1), np.uint8), np.zeros((0, 8, 8, 1), np.uint8), r"clean: .* found uint8 \(0, 8, 8, 1\)"),
        (np.zeros((2, 8, 8, 1), np.uint8), np.zeros((2, 8, 8, 3), np.uint8), r"triggered: expected the shape of clean"),
    ],
)
def test_images_that_are_no_pairs(clean, triggered, message):
    with pytest.raises(InputError, match=message):
        image_quality(clean, triggered)
    with pytest.raises(InputError, match=f"sig: {message}"):
        figure([Example("sig", clean, triggered, Quality(None, 1.0, 0), "")])


@pytest.mark.parametrize(("change", "factor"), [(0, 1), (1, 100), (2, 50), (51, 2), (127, 1), (128, 0.5), (255, 0.5)])
def test_faint_changes_are_amplified_and_none_is_clipped(change, factor):
    clean = np.zeros((1, 8, 8, 1), np.uint8)
    triggered = clean.copy()
    triggered[0, 0, 0, 0] = change
    assert amplification(clean, triggered) == factor
    assert amplification(triggered, clean) == factor


def examples():
    colour, grey = pictures(3, 12, 12, 3), pictures(2, 8, 10, 1)
    return [
        Example("first", *colour, image_quality(*colour), "a note that is long enough for several lines " * 4),
        Example("second", *grey, image_quality(*grey), ""),
        Example("<none>", grey[0], grey[0], image_quality(grey[0], grey[0]), "nothing & nobody"),
    ]


def test_the_figure_shows_every_image_as_it_is():
    entries = examples()
    axes = iter(figure(entries).axes)
    for entry in entries:
        change = entry.triggered.astype(float) - entry.clean.astype(float)
        factor = amplification(entry.clean, entry.triggered)
        for images in (entry.clean / 255, entry.triggered / 255, 0.5 + factor * change / 255):
            assert images.min() >= 0
            assert images.max() <= 1
            for image in images:
                shown = np.asarray(next(axes).get_images()[0].get_array())
                np.testing.assert_allclose(shown, image if entry.clean.shape[-1] == 3 else image[..., 0])
    assert next(axes, None) is None


def test_the_overview_shows_the_first_image_of_each_attack():
    entries = examples()
    shown = [np.asarray(axis.get_images()[0].get_array()) for axis in overview(entries).axes]
    assert len(shown) == 3 * len(entries)
    for column, entry in enumerate(entries):
        for row, images in enumerate((entry.clean, entry.triggered)):
            image = images[0] / 255
            np.testing.assert_allclose(shown[3 * column + row], image if image.shape[-1] == 3 else image[..., 0])


@pytest.mark.parametrize("draw", [figure, overview])
def test_nothing_in_the_figure_overlaps_or_is_cut_off(draw):
    drawing = draw(examples())
    drawing.canvas.draw()
    page = drawing.bbox
    boxes = [axis.get_window_extent() for axis in drawing.axes] + [text.get_window_extent() for text in drawing.texts]
    for number, box in enumerate(boxes):
        assert page.x0 <= box.x0 <= box.x1 <= page.x1
        assert page.y0 <= box.y0 <= box.y1 <= page.y1
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_the_factor_and_the_quality_are_printed():
    texts = [text.get_text() for text in figure(examples()).texts]
    first, second, third = (entry.quality for entry in examples())
    for quality in (first, second):
        expected = f"PSNR {quality.psnr:.1f} dB, SSIM {quality.ssim:.3f}, largest change {quality.largest} of 255"
        assert expected in texts
    assert third.psnr is None
    assert "changes nothing" in texts
    factors = [f"change x{amplification(entry.clean, entry.triggered):g}" for entry in examples()]
    assert [text for text in texts if text.startswith("change x")] == factors


def test_the_page_is_self_contained():
    page = render(examples(), title="Triggers <here>")
    assert page.startswith("<!doctype html>")
    assert "<title>Triggers &lt;here&gt;</title>" in page
    cells = (
        '<th scope="row" class="left">&lt;none&gt;</th><td>-</td><td>1.000</td><td>0</td>'
        '<td class="left">nothing &amp; nobody</td>'
    )
    assert cells in page
    assert re.findall(r"(?:src|href)=\"(.{0,21})", page) == ["data:image/png;base64"]


def test_bad_entries():
    with pytest.raises(InputError, match="entries: expected at least one attack, found none"):
        render([])
    two = pictures(1, 8, 8, 2)
    with pytest.raises(InputError, match="lf: clean: expected 1 or 3 channels, found 2"):
        figure([Example("lf", *two, image_quality(*two), "")])
