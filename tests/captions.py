"""Two hundred captions that are hard for tokenizers: cased, accented, of several scripts, with emoji and HTML, long."""

SUBJECTS = (
    "a man", "Two DOGS", "la niña", "Ein Mädchen", "日本の猫", "Мальчик", "the élève's cat", "👩‍🚀 an astronaut",
    "e\u0301tudiants", "  Ｗｉｄｅ\u00a0letters",
)  # fmt: skip
ACTIONS = (
    "rides a horse", "doesn't STOP -- it's 3:45pm, 100% sure!!", "läuft über die Straße", "plays 🎸🔥 loudly",
    'says: "no" &amp; leaves_now', "jumps\n over\tthe fence", "eats l&#39;orange &lt;b&gt;", "cafÃ© au lait", "…",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
)  # fmt: skip
CAPTIONS = [
    " ".join([f"{subject} {action}"] * times) for subject in SUBJECTS for action in ACTIONS for times in (1, 20)
]
