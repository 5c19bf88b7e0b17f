"""Everything that is not markup is escaped, once."""

from vitdeploy.render.html.markup import Markup, element, join


def test_children_and_attributes_are_escaped() -> None:
    found = element("p", "<b>", title='"><script>', class_="x", stroke_width=1.0)
    assert found == '<p title="&quot;&gt;&lt;script&gt;" class="x" stroke-width="1">&lt;b&gt;</p>'


def test_markup_stays_as_it_is() -> None:
    assert element("p", element("b", "1 < 2")) == "<p><b>1 &lt; 2</b></p>"
    assert join("&", Markup("&amp;")) == "&amp;&amp;"


def test_adding_text_to_markup_gives_text() -> None:
    """Otherwise a sum of markup and a name would count as escaped."""
    assert not isinstance(Markup("<b>") + "<i>", Markup)


def test_none_leaves_an_attribute_out() -> None:
    assert element("i", class_=None) == "<i></i>"
