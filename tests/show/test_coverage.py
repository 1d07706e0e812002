"""coverage.py: positions, masks, scores and contrast counted by hand."""
import math

import numpy as np
import pandas as pd
import pytest
import torch

from amdlib.methods import amd
from amdlib.show.coverage import contrast, covered_by, inside_boxes, inside_image, mask_coverage, region_scores
from amdlib.show.features import Picture


def picture(boxes=(), image_px=(4, 4), padded_px=None, labels=None, image_id=1):
    """A black image with these boxes; sizes are (height, width)."""
    return Picture(image_id, f'{image_id}.png', np.zeros((*image_px, 3), np.uint8),
                   torch.zeros(3, *(padded_px or image_px)), torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                   tuple(labels or ['disc'] * len(boxes)))


def positions(where):
    return {tuple(place) for place in where.nonzero().tolist()}


# ---- positions --------------------------------------------------------------------------------------------------

def test_inside_boxes_by_hand():
    one = picture([(8, 0, 24, 8), (24, 16, 32, 32)], image_px=(32, 32))     # 4x4 positions of 8 px, centres at 4, 12...
    assert positions(inside_boxes(one, 4, 4)) == {(0, 1), (0, 2), (2, 3), (3, 3)}
    assert inside_boxes(one, 4, 4).dtype == torch.bool
    assert positions(inside_boxes(one, 2, 2)) == {(1, 1)}                   # centres at 8 and 24
    assert not inside_boxes(picture(image_px=(32, 32)), 4, 4).any()         # no box


def test_a_centre_on_an_edge_belongs_to_the_box_to_its_right_and_below():
    left, right = picture([(0, 0, 12, 32)], (32, 32)), picture([(12, 0, 32, 32)], (32, 32))
    assert positions(inside_boxes(left, 1, 4)) == {(0, 0)}
    assert positions(inside_boxes(right, 1, 4)) == {
        (0, 1), (0, 2), (0, 3)}


def test_rows_and_columns_are_not_mixed_up():
    wide = picture([(0, 0, 64, 8)], image_px=(16, 64))
    assert positions(inside_boxes(wide, 2, 8)) == {(0, j) for j in range(8)}


def test_inside_image_leaves_the_padding_out():
    one = picture(image_px=(20, 28), padded_px=(32, 32))
    assert positions(inside_image(one, 4, 4)) == {(i, j) for i in range(2) for j in range(3)}   # 20 < 20 is not
    assert inside_image(picture(image_px=(32, 32)), 4, 4).all()


# ---- masks ------------------------------------------------------------------------------------------------------

def feature_with(attention):
    """A feature (1, 1, H, W) whose attention is this one at temperature 1; its mean must be 1."""
    attention = torch.tensor(attention, dtype=torch.float64)
    assert attention.mean().item() == pytest.approx(1)
    return (attention.log() - attention.log().min())[None, None]       # not negative, as a magnitude is


CHOSEN = [[2.0, 1.5, 0.2, 0.2], [0.2, 3.0, 1.2, 0.2], [0.5, 0.5, 2.5, 0.5], [0.5, 1.0, 0.9, 1.1]]


def test_coverage_by_hand():
    one = picture([(0, 0, 2, 2)])       # positions (0, 0), (0, 1), (1, 0), (1, 1) of a 4x4 map
    feature = feature_with(CHOSEN)
    assert torch.allclose(amd.spatial_attention(feature, 1.0)[0], torch.tensor(CHOSEN, dtype=torch.float64))
    table = mask_coverage([feature], [one], [1.4, 2.2, 9], temperature=1.0).set_index(['level', 'phi'])
    low, high, none = (table.loc[(0, phi)] for phi in (1.4, 2.2, 9))
    assert (low.positions, low.masked, low.masked_share) == (16, 4, 0.25)           # 2.0, 1.5, 3.0, 2.5
    assert (low.inside_share, low.random_share, low.lift) == pytest.approx((3 / 4, 4 / 16, 3))
    # 4 drawn of 16, of which 4 are in the box: variance 4 * 1/4 * 3/4 * 12/15 of the number, / 4^2 of the share
    assert low.random_sd == pytest.approx((4 * 0.25 * 0.75 * 12 / 15) ** 0.5 / 4)
    assert (high.masked, high.inside_share) == (2, 0.5)                             # 3.0 and 2.5
    assert none.masked == 0
    assert none.masked_share == 0
    assert none[['inside_share', 'random_share', 'random_sd', 'lift']].isna().all()


def test_a_position_at_the_threshold_is_kept():
    table = mask_coverage([torch.zeros(1, 1, 2, 2)], [picture()], [1.0, 0.99])      # attention is 1 everywhere
    assert table[table.level == 0].masked.tolist() == [0, 4]


def test_padding_is_not_counted():
    attention = [[1.5, 0.5], [0.5, 1.5]]        # the lower right position lies in the padding
    one = picture([(0, 0, 4, 4)], image_px=(8, 4), padded_px=(8, 8))
    line = mask_coverage([feature_with(attention)], [one], [1.0], temperature=1.0).iloc[0]
    assert (line.positions, line.masked, line.inside_share, line.random_share) == (2, 1, 1, 0.5)
    assert line.stride_px == 4


def test_boxes_that_reach_into_the_padding_count_in_the_image_only():
    one = picture([(0, 0, 8, 8)], image_px=(8, 4), padded_px=(8, 8))
    line = mask_coverage([torch.zeros(1, 1, 2, 2)], [one], [0.5]).iloc[0]
    assert (line.positions, line.masked, line.inside_share, line.random_share) == (2, 2, 1, 1)


def test_chance_is_that_of_drawing_as_many_in_each_image():
    """Mean and standard deviation agree with a simulation, over images with different boxes and masks."""
    torch.manual_seed(0)
    shown = [picture([(0, 0, 4, 3)], (8, 8)), picture([(1, 1, 7, 8)], (8, 8), image_id=2), picture((), (8, 8))]
    feature = 3 * torch.rand(3, 4, 8, 8)
    line = mask_coverage([feature], shown, [1.1]).iloc[0]
    masks = amd.keep_mask(amd.spatial_attention(feature, 0.5), 1.1) == 0
    generator = np.random.default_rng(0)
    hits = sum(generator.permuted(np.tile(inside_boxes(one, 8, 8).numpy().ravel(), (20000, 1)), axis=1)
               [:, :int(mask.sum())].sum(axis=1) for one, mask in zip(shown, masks, strict=True))
    shares = hits / int(masks.sum())
    assert 10 < line.masked < 150
    assert line.random_share == pytest.approx(shares.mean(), abs=4 * shares.std() / 20000 ** 0.5)
    assert line.random_sd == pytest.approx(shares.std(), rel=0.03)
    assert line.inside_share == pytest.approx(
        sum(int((inside_boxes(one, 8, 8) & mask[0]).sum()) for one, mask in zip(shown, masks, strict=True))
        / int(masks.sum()))


def test_pooled_lines_are_the_sums_of_the_levels():
    torch.manual_seed(1)
    shown = [picture([(0, 0, 20, 30)], (64, 64)), picture([(8, 8, 64, 40)], (64, 64))]
    maps = [3 * torch.rand(2, 4, side, side) for side in (8, 4)]
    table = mask_coverage(maps, shown, [0.8, 1.2], levels=[3, 4])
    assert table.level.tolist() == [3, 3, 4, 4, 'all', 'all']
    assert table.phi.tolist() == [0.8, 1.2] * 3
    assert table.stride_px.tolist()[:4] == [8, 8, 16, 16]
    assert table.stride_px[4:].isna().all()
    for _, lines in table.groupby('phi'):
        *levels, pooled = lines.itertuples()
        masked = sum(line.masked for line in levels)
        assert (pooled.positions, pooled.masked) == (2 * (64 + 16), masked)
        for share in ('inside_share', 'random_share'):
            total = sum(getattr(line, share) * line.masked for line in levels)
            assert getattr(pooled, share) == pytest.approx(total / masked)
        variance = sum((line.random_sd * line.masked) ** 2 for line in levels)
        assert pooled.random_sd == pytest.approx(variance ** 0.5 / masked)


def test_coverage_refuses_what_does_not_belong_together():
    with pytest.raises(ValueError, match='a map for each of 2 pictures'):
        mask_coverage([torch.zeros(1, 1, 2, 2)], [picture(), picture()], [1.0])
    with pytest.raises(ValueError, match=r'a level for each of 1 features, got \[0, 1\]'):
        mask_coverage([torch.zeros(1, 1, 2, 2)], [picture()], [1.0], levels=[0, 1])
    with pytest.raises(ValueError, match='one padded size'):
        mask_coverage([torch.zeros(2, 1, 2, 2)], [picture(), picture(image_px=(8, 8))], [1.0])


# ---- scores and contrast ----------------------------------------------------------------------------------------

def test_region_scores_by_hand():
    attention = torch.tensor([CHOSEN, [[1.0] * 4] * 4])
    shown = [picture([(0, 0, 2, 2), (2, 2, 4, 3), (0, 0, 0.2, 0.2)], labels=('disc', 'ring', 'disc')),
             picture([(1, 0, 4, 4)], image_id=2)]
    scores = region_scores(attention, shown)
    assert scores[['image_id', 'box', 'class', 'positions']].values.tolist() == [
        [1, 0, 'disc', 4], [1, 1, 'ring', 2], [1, 2, 'disc', 0], [2, 0, 'disc', 12]]
    assert scores.attention.tolist() == pytest.approx([6.7 / 4, 1.5, float('nan'), 1], nan_ok=True)
    assert scores.inside_share.tolist() == pytest.approx([(6.7 + 3) / 16] * 3 + [0.75])
    assert scores.area_share.tolist() == pytest.approx([6 / 16] * 3 + [0.75])
    assert scores.loc[1, ['x1_px', 'y1_px', 'x2_px', 'y2_px']].tolist() == [2, 2, 4, 3]


def test_contrast_by_hand():
    g = torch.tensor([[[4.0, 1.0], [1.0, 1.0]], [[2.0, 3.0], [3.0, 3.0]]])
    shown = [picture([(0, 0, 2, 2)]), picture([(0, 0, 2, 2)], image_id=2)]      # 2x2 maps of a 4x4 image
    found = contrast(g, shown)
    assert (found['inside'], found['outside'], found['contrast']) == pytest.approx((3, 2, 1.5))
    assert (found['low'], found['high']) == pytest.approx((2 / 3, 4))           # the same image drawn twice
    assert contrast(5 * g, shown)['contrast'] == pytest.approx(1.5)


def test_contrast_without_objects_has_no_number():
    found = contrast(torch.ones(1, 2, 2), [picture()])
    assert pd.isna(found['contrast'])
    assert found['outside'] == 1


def test_the_padding_has_no_contrast():
    one = picture([(0, 0, 4, 4)], image_px=(8, 4), padded_px=(8, 8))
    found = contrast(torch.tensor([[[2.0, 100.0], [1.0, 100.0]]]), [one])
    assert found['contrast'] == pytest.approx(2)


def test_what_one_mask_covers_beside_chance():
    shown = picture([(0, 0, 2, 4)], image_px=(4, 4), padded_px=(4, 6))      # its left half; two columns of padding
    keep = torch.ones(4, 6)
    keep[0, :3] = 0         # two of three in the box
    keep[:, 5] = 0          # in the padding: does not count
    assert covered_by(keep, shown) == (3 / 16, pytest.approx(2 / 3), 0.5)
    masked, in_boxes, chance = covered_by(torch.ones(4, 6), shown)
    assert (masked, math.isnan(in_boxes), chance) == (0, True, 0.5)
