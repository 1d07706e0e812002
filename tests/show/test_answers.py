"""answers.py: what a notebook folds away is folded on a page too, and nothing else of its HTML comes through."""
import html

from amdlib.show.answers import folded


def test_answers_are_folded_and_what_they_hold_is_rendered():
    def render(text):
        return f'[{html.escape(text)}]'
    assert folded('no <b>', render) == '[no &lt;b&gt;]'
    two = '<details>\n<summary>Answer & more</summary>\n\n*yes* <script>\n\n</details>'
    assert folded(f'before\n\n{two}\n\nafter', render) == (
        '[before\n\n]<details><summary>Answer &amp; more</summary>[*yes* &lt;script&gt;]</details>[\n\nafter]')
    assert folded(two + two, render).count('<details><summary>') == 2
    assert '<details>' not in folded('<details onclick="a()">\n<summary>x</summary>\n\ny\n\n</details>', render)
    assert '<details>' not in folded('<details>\n<summary>a <b></summary>\n\ny\n\n</details>', render)
