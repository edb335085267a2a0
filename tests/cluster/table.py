"""The table at the end: check, seconds, verdict, figure."""

CHECK = "test_"
_WORDS = {"passed": "pass", "failed": "FAIL", "skipped": "skipped"}


class Table:
    """Collects what pytest reports."""

    def __init__(self):
        self._rows = {}

    def add(self, report):
        """Takes one report of a phase of a test."""
        name = report.nodeid.rpartition("::")[2].removeprefix(CHECK)
        seconds, verdict, figure = self._rows.get(name, (0.0, "", ""))
        if report.when == "call" or report.outcome != "passed":
            verdict = _WORDS[report.outcome]
        figure = dict(report.user_properties).get("figure", figure)
        if report.outcome != "passed":
            figure = _reason(report) or figure
        self._rows[name] = (seconds + report.duration, verdict, figure)

    def lines(self):
        """Returns the table."""
        if not self._rows:
            return []
        width = max(map(len, self._rows))
        rows = [(name, f"{took:.0f} s", verdict, figure) for name, (took, verdict, figure) in self._rows.items()]
        return [f"{name:<{width}}  {took:>6}  {verdict:<7}  {figure}" for name, took, verdict, figure in rows]


def _reason(report):
    if report.outcome == "skipped":
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr)).strip().splitlines()[0][:160]
