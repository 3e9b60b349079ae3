"""The style sheet that is inlined in the page: system fonts, light and dark, narrow screens, paper."""

from __future__ import annotations

from loratlas.report.figures import DARK, LIGHT, Theme


def css() -> str:
    """The whole style sheet."""
    light = _BASE_LIGHT + _arms(LIGHT)
    dark = _BASE_DARK + _arms(DARK)
    return (
        f":root{{color-scheme:light dark;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        f"{_RULES}\n@media print{{:root{{color-scheme:light;{light}}}}}\n{_PRINT}"
    )


def _arms(theme: Theme) -> str:
    return "".join(f"--arm-{i}:{colour};" for i, colour in enumerate(theme.arms))


_BASE_LIGHT = (
    "--page:#faf9f6;--card:#ffffff;--text:#1d2430;--soft:#565f6d;--line:#e3e1da;--shade:#f3f1ec;--link:#0b5c8f;"
    "--better:#00684d;--better-bg:#dff3ea;--worse:#a13c00;--worse-bg:#fdeadd;"
    "--equivalent:#35507a;--equivalent-bg:#e4ebf6;--undetermined:#6a5200;--undetermined-bg:#f8efcf;"
    "--band:#e4ebf6;"
)
_BASE_DARK = (
    "--page:#11141a;--card:#171b22;--text:#e7e9ee;--soft:#a6aebb;--line:#2b313c;--shade:#1d222b;--link:#7cc3f2;"
    "--better:#5bd6a9;--better-bg:#12332a;--worse:#ffa36b;--worse-bg:#3a2213;"
    "--equivalent:#a5bfec;--equivalent-bg:#202c42;--undetermined:#e6c65c;--undetermined-bg:#342c10;"
    "--band:#222d40;"
)

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--page);color:var(--text);overflow-wrap:anywhere;
font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",Arial,sans-serif}
main,header.top,footer{max-width:1160px;margin:0 auto;padding:0 28px}
a{color:var(--link)}
:focus-visible{outline:2px solid var(--link);outline-offset:2px;border-radius:4px}
.skip{position:absolute;left:-9999px}.skip:focus{left:12px;top:12px;background:var(--card);padding:8px 12px}
header.top{padding-top:56px;padding-bottom:12px}
.eyebrow{margin:0 0 14px;color:var(--soft);font-size:.9rem;letter-spacing:.01em}
.eyebrow b{color:var(--text);font-weight:600}
h1,h2,h3{line-height:1.25;font-weight:650;letter-spacing:-.012em;text-wrap:balance}
h1{margin:0 0 18px;font-size:clamp(1.55rem,3.6vw,2.3rem)}
.conditions{margin:10px 0 0;color:var(--soft);font-size:.95rem}
.answer{margin:0 0 8px;font-size:clamp(1.12rem,2vw,1.36rem);line-height:1.5;max-width:58ch;
text-wrap:pretty}
.name{font-weight:650}
nav{display:flex;flex-wrap:wrap;gap:4px 20px;margin:26px 0 0;padding:12px 0;
border-block:1px solid var(--line);font-size:.92rem}
nav a{text-decoration:none}nav a:hover{text-decoration:underline}
.banner{margin:22px 0 0;padding:12px 16px;border-left:4px solid var(--undetermined);border-radius:4px;
background:var(--undetermined-bg);max-width:80ch}
.banner.incomplete{border-color:var(--worse);background:var(--worse-bg)}
section{margin:52px 0}
h2{margin:0 0 6px;font-size:1.42rem}
.lead{margin:0 0 20px;color:var(--soft);max-width:72ch;text-wrap:pretty}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:20px 22px}
.finding{display:grid;grid-template-columns:minmax(0,1fr) minmax(260px,400px);gap:10px 36px;
align-items:center;margin:0 0 14px}
.finding h3{margin:9px 0 4px;font-size:1.16rem;text-wrap:pretty}
.numbers{display:flex;flex-wrap:wrap;gap:8px 24px;margin:0}
.numbers dt{color:var(--soft);font-size:.8rem}
.numbers dd{margin:0;font-size:.95rem;font-variant-numeric:tabular-nums}
.finding .says p{margin:0;color:var(--soft);font-size:.95rem}
.finding .says p.reason{margin:0 0 10px}
.badge{display:inline-flex;align-items:center;gap:.45em;padding:2px 11px 2px 9px;border-radius:99px;
font-size:.84rem;font-weight:600;color:var(--v);background:var(--v-bg)}
.better{--v:var(--better);--v-bg:var(--better-bg)}.worse{--v:var(--worse);--v-bg:var(--worse-bg)}
.equivalent{--v:var(--equivalent);--v-bg:var(--equivalent-bg)}
.undetermined{--v:var(--undetermined);--v-bg:var(--undetermined-bg)}
.card+.card{margin-top:14px}
.dot{display:inline-block;width:.72em;height:.72em;border-radius:50%;background:var(--c);margin-right:.5em;
flex:none;vertical-align:baseline}
svg.forest{display:block;width:100%;height:auto;overflow:visible}
.forest .band{fill:var(--band)}.forest .axis{stroke:var(--soft);stroke-width:1}
.forest .zero{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:3 3}
.forest .tick{fill:var(--soft);font-size:11px;text-anchor:middle}
.forest .ci{fill:none;stroke:var(--v);stroke-width:2.4;stroke-linecap:round}
.forest .point{fill:var(--v);stroke:var(--card);stroke-width:2}
.forest .detectable{stroke:var(--soft);stroke-width:2}
.sides{display:flex;justify-content:space-between;color:var(--soft);font-size:.8rem;margin:2px 0 0}
.key{display:flex;flex-wrap:wrap;gap:6px 22px;margin:4px 0 0;padding:0;list-style:none;color:var(--soft);
font-size:.86rem}
.key svg.forest{display:inline-block;width:26px;height:14px;margin-right:7px;vertical-align:-2px}
details{margin-top:10px;font-size:.95rem}
summary{cursor:pointer;color:var(--link);width:fit-content}
details>p,details>.scroll{margin-top:8px}
table{border-collapse:collapse;width:100%;overflow-wrap:normal;font-size:.93rem;font-variant-numeric:tabular-nums}
th,td{padding:9px 11px 9px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{font-weight:600}
thead th{color:var(--soft);font-size:.83rem;vertical-align:bottom}
tbody tr:last-child>*{border-bottom:0}
small code{font-size:.94em}
small{display:block;color:var(--soft);font-size:.88em;font-weight:400}
td small,td data{white-space:nowrap}td code+small{white-space:normal}
th[scope=row]{overflow-wrap:break-word}
td code{overflow-wrap:anywhere;display:inline-block;min-width:17ch;max-width:26ch}
.arms tbody th{min-width:8.4em}
th .dot{position:absolute;left:0;top:.95em}
tbody th:has(.dot){position:relative;padding-left:1.35em}
.scroll{overflow-x:auto}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;font-size:.9em}
pre{margin:0;padding:16px 18px;background:var(--shade);border:1px solid var(--line);border-radius:8px;
overflow:auto;line-height:1.5;max-height:32em;font-size:.86rem;overflow-wrap:normal}
figure{margin:0}
figcaption{color:var(--soft);font-size:.9rem;margin-top:6px;max-width:80ch}
.plot{min-height:240px;min-width:0;overflow:hidden}.plot.tall{min-height:400px}
.plot .hovertext path{stroke-width:1px}
fieldset{border:0;margin:0 0 14px;padding:0;display:flex;flex-wrap:wrap;align-items:center;gap:8px 14px}
legend{float:left;padding:0;color:var(--soft);font-size:.92rem}
.choice{display:inline-flex;flex-wrap:wrap;gap:2px;padding:3px;border-radius:9px;background:var(--shade);
border:1px solid var(--line)}
.choice label{position:relative;padding:4px 13px;border-radius:7px;font-size:.92rem;cursor:pointer}
.choice .off{color:var(--soft);cursor:default}
.choice input{position:absolute;inset:0;opacity:0;margin:0;cursor:pointer}
.choice label:has(:checked){background:var(--card);box-shadow:0 0 0 1px var(--line);font-weight:600}
.choice label:has(:focus-visible){outline:2px solid var(--link)}
.maps{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:14px}
.maps h3{margin:0 0 2px;font-size:1.02rem}.maps p{margin:0 0 8px;color:var(--soft);font-size:.88rem}
.scale{display:flex;align-items:center;gap:10px;margin:0 0 14px;color:var(--soft);font-size:.88rem}
.scale i{flex:0 1 180px;height:11px;border-radius:3px}.scale i.dark{display:none}
@media (prefers-color-scheme:dark){.scale i.dark{display:block}.scale i.light{display:none}}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(300px,100%),1fr));gap:0 36px;margin:0}
.pairs div{display:flex;justify-content:space-between;gap:20px;padding:7px 0;
border-bottom:1px solid var(--line);font-size:.93rem}
.pairs dt{color:var(--soft);flex:none;max-width:50%}.pairs dd{margin:0;text-align:right;min-width:0}
.block{margin:22px 0 0}.block h3{margin:0 0 8px;font-size:1.05rem}
.head{display:flex;justify-content:space-between;align-items:baseline;gap:14px;flex-wrap:wrap}
button{font:inherit;font-size:.88rem;padding:3px 12px;border:1px solid var(--line);border-radius:7px;
background:var(--card);color:var(--link);cursor:pointer}
button:hover{background:var(--shade)}
.limits{margin:0;padding-left:1.2em;max-width:80ch}.limits li{margin:0 0 8px}
footer{padding-top:8px;padding-bottom:56px;color:var(--soft);font-size:.88rem}
@media (max-width:760px){
main,header.top,footer{padding-inline:16px}
header.top{padding-top:30px}
section{margin:40px 0}
.card{padding:16px}
.finding{grid-template-columns:minmax(0,1fr)}
.arms thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.arms,.arms tbody,.arms tr,.arms th,.arms td{display:block}
.arms tr{padding:12px 0;border-bottom:1px solid var(--line)}
.arms tr:last-child{border-bottom:0}
.arms th,.arms td{padding:3px 0;border:0}
.arms th .dot{top:.62em}
.arms th[scope=row]{font-size:1.05rem}
.arms td{display:flex;justify-content:space-between;gap:18px;text-align:right}
.arms td code{max-width:none;min-width:0}
.arms td small{display:inline;margin-left:.6em}
.arms th small{display:inline;padding:0!important;margin-left:.5em}
.arms td::before{content:attr(data-label);color:var(--soft);text-align:left;flex:none}
.plot{margin-inline:-8px}
}
"""

_PRINT = """
@media print{
body{font-size:11pt;background:#fff}
nav,button,.choice,fieldset,.skip{display:none!important}
.scale i.dark{display:none}.scale i.light{display:block;print-color-adjust:exact}
main,header.top,footer{max-width:none;padding-inline:0}
section{margin:22pt 0}
.card,figure,tr,.finding{break-inside:avoid}
pre{max-height:none;white-space:pre-wrap;overflow:visible}
.scroll{overflow:visible}
a{color:inherit;text-decoration:none}
}
"""
