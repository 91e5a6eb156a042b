from solar_plugins.text import aligned


def test_digits_stay_in_line_beside_a_mark():
    lines = aligned([["name", "score", "n"], ["a", "9.25", "1"], ["b", "10.50*", "20"], ["c", "-", ""]])
    assert lines == [
        "name  score    n",
        "a      9.25    1",
        "b     10.50*  20",
        "c         -",
    ]


def test_a_table_of_names_alone():
    assert aligned([["a"], ["bc"]]) == ["a", "bc"]
