"""Tables in Markdown."""

from valuembed.reporting.markdown import cell, table


def test_each_column_has_its_side():
    assert table(["a", "b", "c"], [["1", "2", "3"]], "l-r") == ["| a | b | c |", "|:--|---|--:|", "| 1 | 2 | 3 |"]


def test_the_last_side_goes_for_all_columns_that_are_left():
    assert table(["a", "b", "c"], [], "lr") == ["| a | b | c |", "|:--|--:|--:|"]
    assert table(["a"], [], "lr") == ["| a |", "|:--|"]


def test_a_row_may_end_early():
    assert table(["a", "b", "c"], [["1"], ["1", "", "3"]], "r")[2:] == ["| 1 | | |", "| 1 |  | 3 |"]


def test_no_text_ends_its_cell():
    assert cell(" a|b \n\n  c\r\nd  e") == "a\\|b c d  e"
    assert table(["x|y"], [["a\nb"]], "l") == ["| x\\|y |", "|:--|", "| a b |"]
