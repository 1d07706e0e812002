"""What the notebooks to think with need besides the method itself: a few small measurements, and masks, still."""
from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from amdlib.methods.amd import AMDLoss, keep_mask, spatial_attention
from amdlib.paper.rows import ROWS
from amdlib.runs.run import Run
from amdlib.runs.store import Store
from amdlib.show import pictures
from amdlib.show.charts import distillation_terms
from amdlib.show.coverage import mask_coverage
from amdlib.show.features import Picture

PHIS = tuple(round(0.05 * i, 2) for i in range(2, 61))      # 0.1 to 3, of curves


# ---- small measurements -----------------------------------------------------------------------------------------

def sharpness(f_t: Tensor, temperatures: Sequence[float], phi: float) -> pd.DataFrame:
    """How concentrated the attention is at each temperature, on average over the images.

    Shapes: (N, C, H, W) -> a line a temperature. `effective_positions` is exp(entropy): H*W where all positions count
    alike, 1 where one takes everything; `masked_share` lies in 0 ... 1.
    """
    lines = []
    for temperature in temperatures:
        attention = spatial_attention(f_t.double(), temperature)
        share = attention.flatten(1) / attention[0].numel()
        lines.append({'temperature': temperature, 'smallest_A': attention.min().item(),
                      'largest_A': attention.max().item(),
                      'effective_positions': torch.special.entr(share).sum(1).exp().mean().item(),
                      'masked_share': 1 - keep_mask(attention, phi).mean().item()})
    return pd.DataFrame(lines)


def learn_to_generate(loss: AMDLoss, f_s: Tensor, f_t: Tensor, steps: int = 100, lr: float = 1e-2) -> list[float]:
    """Fit the loss's own parameters (align, generation, clue) to one pair of fixed features, with Adam.

    Returns the loss before the first step and after each: `steps` + 1 values. The parameters are changed in place.
    """
    optimizer = torch.optim.Adam(loss.parameters(), lr=lr)
    curve = []
    for _ in range(steps):
        value = loss(f_s, f_t)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        curve.append(value.item())
    with torch.no_grad():
        return [*curve, loss(f_s, f_t).item()]


def compare_fits(f_s: Tensor, f_t: Tensor, options: dict, variants: dict[str, dict], steps: int = 100,
                 seed: int = 0) -> tuple[dict[str, AMDLoss], pd.DataFrame]:
    """`learn_to_generate` for several AMDLosses, each `options` with a variant's changes, from the same seed.

    Returns the fitted losses by variant, and a column a variant over the steps: L_dis as a share of what it would be
    if nothing were generated (the sum of squares of F_T).
    """
    fitted, curves = {}, {}
    for name, changes in variants.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            loss = fitted[name] = AMDLoss(f_s.shape[1], f_t.shape[1], **{**options, **changes, 'alpha': 1.0})
        curves[name] = learn_to_generate(loss, f_s, f_t, steps)
    return fitted, pd.DataFrame(curves) / (f_t.square().sum().item() / len(f_t))


def loss_terms(run: Run, store: Store) -> pd.DataFrame:
    """What a run's training logged: step, `detection` loss, weighted `distillation` loss (0 without a method).

    Empty where the run is not done, or was made before losses were kept.
    """
    logged = store.scalars(run) if store.state(run).name == 'done' else pd.DataFrame()
    if logged.empty:
        return pd.DataFrame(columns=['step', 'detection', 'distillation'])
    ours = logged[distillation_terms(logged)].sum(axis=1)
    return pd.DataFrame({'step': logged.step, 'detection': logged.loss - ours, 'distillation': ours})


def coverage_in_words(coverage: pd.DataFrame, phi: float) -> str:
    """Markdown: what `coverage.mask_coverage` found for Section IV-D's claim, a line a level, at `phi` and over all.

    "More than at random" means by more than two standard deviations of the random draw.
    Errors: ValueError where the table has no line for `phi`.
    """
    if not (coverage.phi == phi).any():
        raise ValueError(f'phi={phi!r}: expected one of the table, {sorted(set(coverage.phi))}')
    told, above, growing = [], [], []
    by_level = coverage[coverage.level != 'all'].groupby('level', sort=False)
    for level, lines in by_level:
        here, some = lines[lines.phi == phi].iloc[0], lines[lines.masked > 0].sort_values('phi')
        text = f'- Level {level} (stride {here.stride_px:g} px): '
        if here.masked:
            text += (f'at phi = {phi:g}, {here.masked_share:.1%} of the positions are masked; {here.inside_share:.1%} '
                     f'of those lie in boxes, {here.random_share:.1%} ± {here.random_sd:.1%} of as many at random')
        else:
            text += f'nothing is masked at phi = {phi:g}'
        if len(some) > 1:
            first, last = some.iloc[0], some.iloc[-1]
            text += (f'; from phi = {first.phi:g} to {last.phi:g} the share in boxes goes from '
                     f'{first.inside_share:.1%} to {last.inside_share:.1%}')
            growing += [level] if last.inside_share > first.inside_share else []
        above += [level] if here.inside_share > here.random_share + 2 * here.random_sd else []
        told.append(f'{text}.')
    told.append(f'- Together: the masked positions lie in boxes more often than at random on {len(above)} of '
                f'{len(by_level)} levels, and more so for a larger phi on {len(growing)} of {len(by_level)}.')
    return '\n'.join(told)


# ---- masks ------------------------------------------------------------------------------------------------------

def done_runs(store: Store) -> list[Run]:
    """Every run of a store that has a valid record, teachers first, then in the order of the tables.

    Left out are losses of the user's and runs with weight files of their own: a record does not say where those lie.
    """
    found = [run for file in store.record_files() if (run := store.run_of(file)) and store.state(run).name == 'done']
    place = {row: i for i, row in enumerate(ROWS)}     # controls of the zoo come last
    return sorted(found, key=lambda run: (not run.row.is_teacher, place.get(run.row.id, len(place)), run.id))


def mask_figure(picture: Picture, f_t: Tensor, phi: float, temperature: float) -> Figure:
    """Attention over one image, the mask, and both shares over phi.

    Shapes: `f_t` (1, C, H, W), one level of the image's feature.
    """
    attention = spatial_attention(f_t, temperature)
    coverage = mask_coverage([f_t], [picture], PHIS, temperature)
    kept = keep_mask(attention, phi)[0, 0]
    return pictures.mask_view(picture, attention[0], kept, coverage[coverage.level == 0], phi)


def mask_grid(picture: Picture, lines: dict[str, tuple[Tensor, float]], phis: Sequence[float]) -> Figure:
    """Masks over phi, a line each for other features or temperatures of the same image.

    Args:
        lines: by title, the feature of one level (1, C, H, W) and the temperature.
    """
    def across_phi(f_t: Tensor, temperature: float) -> dict[str, Tensor]:
        attention = spatial_attention(f_t, temperature)
        return {f'phi = {phi:g}': keep_mask(attention, phi)[0, 0] for phi in phis}
    return pictures.mask_grid(picture, {title: across_phi(*line) for title, line in lines.items()})
