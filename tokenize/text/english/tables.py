"""Word tables of English normalization: months, units, currencies, abbreviations, symbols, names with numerals."""

from __future__ import annotations

MONTHS = "January February March April May June July August September October November December".split()
MONTH_OF = {**{month: month for month in MONTHS}, **{month[:3]: month for month in MONTHS}, "Sept": "September"}

DAYS = {
    **{"Mon": "Monday", "Tue": "Tuesday", "Tues": "Tuesday", "Wed": "Wednesday", "Thu": "Thursday"},
    **{"Thur": "Thursday", "Thurs": "Thursday", "Fri": "Friday", "Sat": "Saturday", "Sun": "Sunday"},
}

_METRIC = {
    **{"m": "meter", "g": "gram", "l": "liter", "L": "liter", "W": "watt", "V": "volt", "Hz": "hertz", "J": "joule"},
    **{"Pa": "pascal", "N": "newton", "A": "ampere", "B": "byte", "b": "bit", "bit": "bit", "s": "second"},
    **{"eV": "electron volt", "Wh": "watt hour", "bps": "bit per second", "cal": "calorie", "mol": "mole"},
}
_PREFIXED = {
    "k": ("kilo", "m g l W V Hz J Pa N B b bit eV Wh bps cal"),
    "M": ("mega", "W V Hz J Pa N B b bit eV Wh bps"),
    "G": ("giga", "W Hz J Pa B b bit eV Wh bps"),
    "T": ("tera", "W Hz B b bit Wh"),
    "P": ("peta", "B"),
    "c": ("centi", "m l L"),
    "d": ("deci", "m l L"),
    "h": ("hecto", "Pa"),
    "m": ("milli", "m g l L W V A s mol"),
    "µ": ("micro", "m g l s A"),
    "μ": ("micro", "m g l s A"),
    "n": ("nano", "m s g"),
}
_OTHER_UNITS = {
    **{"in": ("inch", "inches"), "ft": ("foot", "feet"), "yd": ("yard", "yards"), "mi": ("mile", "miles")},
    **{"lb": ("pound", "pounds"), "lbs": ("pound", "pounds"), "oz": ("ounce", "ounces"), "t": ("ton", "tons")},
    **{"h": ("hour", "hours"), "hr": ("hour", "hours"), "hrs": ("hour", "hours"), "min": ("minute", "minutes")},
    **{"mins": ("minute", "minutes"), "sec": ("second", "seconds"), "secs": ("second", "seconds")},
    **{"KB": ("kilobyte", "kilobytes"), "KiB": ("kibibyte", "kibibytes"), "MiB": ("mebibyte", "mebibytes")},
    **{"GiB": ("gibibyte", "gibibytes"), "dB": ("decibel", "decibels"), "ha": ("hectare", "hectares")},
    **{"gal": ("gallon", "gallons"), "pt": ("point", "points"), "px": ("pixel", "pixels"), "kph": ("kph", "kph")},
    **{"mph": ("mile per hour", "miles per hour"), "mpg": ("mile per gallon", "miles per gallon")},
    **{"kmh": ("kilometer per hour", "kilometers per hour"), "kmph": ("kilometer per hour", "kilometers per hour")},
    **{"rpm": ("revolution per minute", "revolutions per minute"), "bpm": ("beat per minute", "beats per minute")},
    **{"fps": ("frame per second", "frames per second"), "dpi": ("dot per inch", "dots per inch")},
    **{"kn": ("knot", "knots"), "Ω": ("ohm", "ohms"), "kΩ": ("kiloohm", "kiloohms"), "wk": ("week", "weeks")},
    **{"wks": ("week", "weeks"), "yr": ("year", "years"), "yrs": ("year", "years"), "mo": ("month", "months")},
    **{"tsp": ("teaspoon", "teaspoons"), "tbsp": ("tablespoon", "tablespoons"), "kcal": ("kilocalorie",) * 2},
}
ONLY_TOUCHING = {"h", "s", "t", "l", "in", "pt", "mo", "mi", "bit", "sec", "cal", "kn"}
"""Units that are read as such only without a space after the number: words look like them."""


def _plural(name: str) -> str:
    first, per, rest = name.partition(" per ")
    return (first if first.endswith("hertz") else first + "s") + per + rest


def _unit_names() -> dict[str, tuple[str, str]]:
    names = {symbol: (name, _plural(name)) for symbol, name in _METRIC.items()}
    for letter, (prefix, units) in _PREFIXED.items():
        names |= {letter + unit: (prefix + _METRIC[unit], _plural(prefix + _METRIC[unit])) for unit in units.split()}
    return {symbol: name for symbol, name in (names | _OTHER_UNITS).items() if symbol not in ("A", "B", "b", "N", "J")}


UNITS = _unit_names()
"""Symbol -> singular and plural."""
AREAS = {"²": "square", "³": "cubic", "^2": "square", "^3": "cubic"}

CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "US$": ("dollar", "dollars", "cent", "cents"),
    "USD": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "GBP": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
    "EUR": ("euro", "euros", "cent", "cents"),
    "¥": ("yen", "yen", "sen", "sen"),
    "JPY": ("yen", "yen", "sen", "sen"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "₩": ("won", "won", "jeon", "jeon"),
    "₽": ("ruble", "rubles", "kopeck", "kopecks"),
    "₿": ("bitcoin", "bitcoins", "cent", "cents"),
    "¢": ("cent", "cents", "", ""),
}
"""Symbol -> names of the unit and of its hundredth, each singular and plural."""
MAGNITUDES = {
    **{"k": "thousand", "K": "thousand", "m": "million", "M": "million", "mn": "million", "mm": "million"},
    **{"bn": "billion", "B": "billion", "b": "billion", "tn": "trillion", "T": "trillion"},
    **{name: name for name in ("hundred", "thousand", "million", "billion", "trillion")},
}

TITLES = {
    **{"Mr": "mister", "Mrs": "missus", "Ms": "miz", "Dr": "doctor", "Prof": "professor", "St": "saint"},
    **{"Mt": "mount", "Ft": "fort", "Gen": "general", "Gov": "governor", "Sen": "senator", "Rep": "representative"},
    **{"Capt": "captain", "Lt": "lieutenant", "Col": "colonel", "Sgt": "sergeant", "Cmdr": "commander"},
    **{"Cpl": "corporal", "Maj": "major", "Adm": "admiral", "Rev": "reverend", "Hon": "honorable"},
    **{"Pres": "president", "Supt": "superintendent", "Fr": "father", "Msgr": "monsignor", "Messrs": "messieurs"},
}
"""Before a name, with or without a dot."""
ALWAYS_TITLES = {"Mr", "Mrs", "Ms", "Dr", "Prof"}
"""Read as titles also where no name follows."""
STREETS = {"St": "street", "Dr": "drive", "Ave": "avenue", "Rd": "road", "Blvd": "boulevard", "Ln": "lane"}
"""After a name."""

ABBREVIATIONS = {
    **{"e.g.": "for example", "i.e.": "that is", "etc.": "et cetera", "vs.": "versus", "vs": "versus"},
    **{"v.": "versus", "approx.": "approximately", "est.": "established", "cf.": "compare", "viz.": "namely"},
    **{"et al.": "and others", "ca.": "circa", "c.": "circa", "incl.": "including", "excl.": "excluding"},
    **{"Jr.": "junior", "Jr": "junior", "Sr.": "senior", "Sr": "senior", "Esq.": "esquire"},
    **{"Inc.": "incorporated", "Ltd.": "limited", "Corp.": "corporation", "Co.": "company", "Bros.": "brothers"},
    **{"Ave.": "avenue", "Blvd.": "boulevard", "Rd.": "road", "Ln.": "lane", "Hwy.": "highway", "Pkwy.": "parkway"},
    **{"Sq.": "square", "Apt.": "apartment", "Bldg.": "building", "Ste.": "suite", "Dept.": "department"},
    **{"dept.": "department", "Univ.": "university", "Assn.": "association", "Govt.": "government"},
    **{"govt.": "government", "Intl.": "international", "Natl.": "national", "Mfg.": "manufacturing"},
    **{"min.": "minimum", "max.": "maximum", "avg.": "average", "temp.": "temperature", "misc.": "miscellaneous"},
    **{"w/": "with", "w/o": "without", "c/o": "care of", "b/c": "because", "a/c": "A-C", "Ph.D.": "P-H-D"},
    **{"Ph.D": "P-H-D", "PhD": "P-H-D", "PhDs": "P-H-D's", "aka": "also known as", "AKA": "also known as"},
}
"""`c.` and `v.` count only in front of a number and between names."""
NEVER_LAST = {"e.g.", "i.e.", "vs.", "v.", "cf.", "viz.", "approx.", "est.", "ca.", "c.", "incl.", "excl."}
"""No sentence ends with these abbreviations."""
BEFORE_NUMBERS = {
    **{"no": "number", "nos": "numbers", "p": "page", "pp": "pages", "fig": "figure", "figs": "figures"},
    **{"vol": "volume", "vols": "volumes", "ch": "chapter", "chap": "chapter", "sec": "section", "eq": "equation"},
    **{"art": "article", "ext": "extension", "tel": "telephone", "ver": "version", "ed": "edition"},
}
"""With a dot and before a number, capitalized or not."""

SYMBOLS = {
    **{"%": "percent", "‰": "per mille", "&": "and", "+": "plus", "=": "equals", "@": "at", "×": "times"},
    **{"÷": "divided by", "±": "plus or minus", "≈": "approximately equals", "≠": "does not equal", "−": "minus"},
    **{"≤": "is at most", "≥": "is at least", "§": "section", "¶": "paragraph", "°": "degrees", "©": "copyright"},
    **{"√": "square root of", "∞": "infinity", "№": "number", "℃": "degrees Celsius", "℉": "degrees Fahrenheit"},
    **{"$": "dollars", "£": "pounds", "€": "euros", "¥": "yen", "¢": "cents", "₹": "rupees", "²": "squared"},
    **{"³": "cubed", "½": "one half"},
}
GREEK = dict(
    zip(
        "αβγδεζηθικλμνξοπρστυφχψω",
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi "
        "chi psi omega".split(),
        strict=True,
    )
)
MARKS_AS = {
    **{mark: mark for mark in ",.?!;:"},
    **dict.fromkeys("()[]{}—–―‒•·", ","),
    **{"。": ".", "、": ",", "،": ",", "؟": "?", "।": ".", "‽": "?", "⁉": "?", "‼": "!"},
}
"""Punctuation -> mark of the units."""
WITHOUT_SOUND = frozenset("\"'`´‘’“”„‚‹›«»*_~^|\\/<>-‐‑¿¡™®†‡′″")
"""Left out without a warning."""

REIGNING = frozenset(
    "Henry Louis Elizabeth George Edward Richard Charles James William Mary John Paul Pius Benedict Gregory Leo "
    "Catherine Frederick Peter Philip Napoleon Nicholas Ivan Alexander Ferdinand Francis Innocent Clement Ramses "
    "Ptolemy Darius Xerxes Otto Wilhelm Gustav Christian Carlos Felipe Albert Victoria Haakon Olav Constantine "
    "Theodosius Margaret Robert David Malcolm Urban Julius Sixtus Boniface Celestine Adrian Stephen Thutmose".split()
)
"""Before a Roman numeral that is read as an ordinal: Henry the eighth."""
NUMBERED = frozenset(
    "chapter part act scene volume vol book section article war type phase level class figure table appendix title "
    "grade stage episode apollo bowl mark lesson unit group division category tier round step rule question schedule "
    "exhibit annex canto symphony sonata opus movement version generation gen".split()
)
"""Before a Roman numeral that is read as a cardinal, also I and V."""
DOMAINS = (
    "com org net edu gov mil int info biz io ai co uk us de fr it es nl ca au jp cn eu ch at se no dk fi pl ru in br "
    "tv me ly app dev xyz"
).split()
FILE_TYPES = (
    "pdf txt doc docx xls xlsx ppt pptx csv tsv json xml yaml yml html htm css js ts py cpp hpp rs go java sh zip tar "
    "gz jpg jpeg png gif svg bmp tiff webp mp3 mp4 wav flac ogg avi mov mkv exe dmg iso md ipynb onnx safetensors"
).split()
