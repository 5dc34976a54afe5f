"""The look of report.html: light and dark, wide and narrow."""

CSS = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b2129;--soft:#5b6673;--line:#dfe3e8;--good:#00795a;
--bad:#b34700;--accent:#0072b2;--mark:#eef4f9;--series-0:#0072b2;--series-1:#d55e00;--series-2:#009e73;
--series-3:#c0588f;--series-4:#b8860b;--series-5:#4aa3d8;--series-6:#7f7f7f;--series-7:#7c4ddb}
@media (prefers-color-scheme:dark){:root{--bg:#12161b;--card:#1a2027;--ink:#e8ecf0;--soft:#9aa6b2;--line:#2d3640;
--good:#3ecfa3;--bad:#ff9a57;--accent:#5db4ea;--mark:#1f2a35;--series-0:#5db4ea;--series-1:#ff8a3d;--series-2:#3ecfa3;
--series-3:#e59cc2;--series-4:#e0b64a;--series-5:#9bd3f5;--series-6:#a9b1ba;--series-7:#b49bff}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 24px 64px}
header{margin-bottom:36px}
.eyebrow{margin:0 0 8px;color:var(--soft);font-size:.85rem;letter-spacing:.04em}
h1{margin:0;max-width:32em;font-size:clamp(1.35rem,3.2vw,2.05rem);line-height:1.28;font-weight:650;text-wrap:balance;
border-left:4px solid var(--line);padding-left:18px}
h1.good{border-color:var(--good)}
h1.bad{border-color:var(--bad)}
h2{margin:0 0 16px;font-size:1.15rem;font-weight:650}
h3{margin:24px 0 10px;font-size:1rem;font-weight:600;overflow-wrap:anywhere}
section{margin-top:20px;padding:24px;background:var(--card);border:1px solid var(--line);border-radius:12px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:28px 0 0}
.tiles div{padding:14px 18px;background:var(--card);border:1px solid var(--line);border-radius:12px;display:flex;
flex-direction:column-reverse;justify-content:flex-end}
.tiles dd{margin:0;font-size:1.7rem;font-weight:650;font-variant-numeric:tabular-nums;line-height:1.25}
.tiles dt{color:var(--soft);font-size:.85rem;line-height:1.35}
.scroll{overflow-x:auto;background:linear-gradient(90deg,var(--card) 40%,transparent) 0 0/36px 100% no-repeat local,
linear-gradient(270deg,var(--card) 40%,transparent) 100% 0/36px 100% no-repeat local,
linear-gradient(90deg,#0003,transparent) 0 0/12px 100% no-repeat scroll,
linear-gradient(270deg,#0003,transparent) 100% 0/12px 100% no-repeat scroll}
table{width:100%;border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:10px 14px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child{text-align:left;padding-left:8px}
thead th{white-space:normal;color:var(--soft);font-size:.85rem;font-weight:500}
tbody th{font-weight:500}
tbody tr:last-child>*{border-bottom:0}
tr.run>*{padding-top:22px;background:none}
tr.run>th{white-space:normal;overflow-wrap:anywhere;font-weight:650}
li{overflow-wrap:anywhere}
tr.student>*{background:var(--mark);font-weight:650}
th small{display:block;color:var(--soft);font-size:.8rem;font-weight:400}
.note{margin:12px 0 0;color:var(--soft);font-size:.85rem}
.note+figure,.scroll+figure,.note+.curves,figure.wide+figure.wide,figure.wide+.curves{margin-top:20px}
.legend{display:flex;flex-wrap:wrap;gap:6px 18px;margin:0;padding:0;list-style:none;color:var(--soft);font-size:.85rem}
.legend i{display:inline-block;width:.8em;height:.8em;margin-right:.45em;border-radius:3px;border:1px solid #8888}
.rank{margin-right:.6em;padding:2px 9px;border-radius:99px;background:var(--mark);color:var(--accent);font-size:.8rem}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(138px,1fr));gap:12px 8px}
figure{margin:0;min-width:0}
.panels figure{max-width:288px}
img{display:block;width:100%;height:auto;border-radius:6px;background:#000}
.panels figcaption{margin-top:5px;font-size:.8rem;line-height:1.35;color:var(--soft);overflow-wrap:anywhere}
figcaption b{display:block;color:var(--ink);font-weight:600;font-variant-numeric:tabular-nums}
.looks{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:18px 14px;margin-top:16px}
.looks.pairs{grid-template-columns:repeat(auto-fill,minmax(min(100%,290px),1fr))}
.looks.captioned{grid-template-columns:repeat(auto-fill,minmax(min(100%,220px),1fr))}
.looks p{margin:4px 0 0}
.pairs figure{display:grid;grid-template-columns:1fr 1fr;gap:4px;align-content:start}
.looks figcaption{grid-column:1/-1;margin-top:5px;font-size:.8rem;line-height:1.35;color:var(--soft);
overflow-wrap:anywhere}
td.none{color:var(--bad);font-weight:600}
.right{color:var(--good)}
.wrong{color:var(--bad);font-weight:600}
.record{display:grid;grid-template-columns:200px minmax(0,1fr);gap:8px 20px;margin-top:22px;break-inside:avoid}
.record h3{margin:0 0 4px}
.record p{margin:0 0 8px;max-width:52em;font-size:.9rem}
.record table{width:auto;font-size:.85rem}
.record th,.record td{padding:5px 18px 5px 0;text-align:left}
th i{display:inline-block;width:.8em;height:.8em;margin-right:.5em;border-radius:3px;border:1px solid #8888}
.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));gap:20px}
.curves figcaption,.wide figcaption{margin-bottom:4px;color:var(--soft);font-size:.85rem}
.curves figure{max-width:620px}
.curves figure:only-child{max-width:540px}
.wide{max-width:760px}
svg{display:block;width:100%;height:auto}
.facts{margin:18px 0 0;display:grid;gap:6px}
.facts div{display:grid;grid-template-columns:8em 1fr;gap:12px}
.facts dt{color:var(--soft)}
.facts dd{margin:0;overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--accent)}
pre{margin:14px 0 0;padding:16px;max-height:32em;overflow:auto;background:var(--bg);border-radius:8px;font-size:.8rem}
@media (max-width:640px){main{padding:24px 12px 40px}section{padding:16px 14px}h1{padding-left:12px}
.record{grid-template-columns:1fr}.record img{max-width:200px}
.panels{grid-template-columns:repeat(2,1fr)}.tiles{grid-template-columns:1fr 1fr}.tiles dd{font-size:1.35rem}
.tiles div{padding:12px 14px}th,td{padding:9px 7px;font-size:.82rem}th:first-child{white-space:normal;min-width:8.5em}
.facts div{grid-template-columns:1fr;gap:0}}
@page{size:A4;margin:12mm}
@media print{:root{color-scheme:light;--bg:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;--good:#00795a;
--bad:#b34700;--accent:#0072b2;--mark:#eef4f9}
main{max-width:none;padding:0}section{border:0;padding:10px 0}.scroll{overflow:visible;background:none}
tr,figure,.tiles div,.panels{break-inside:avoid}h2,h3{break-after:avoid}
th,td{padding:5px 4px;font-size:.68rem;white-space:normal;overflow-wrap:anywhere}td{min-width:3.2em}
pre{max-height:none;overflow:visible;white-space:pre-wrap}.tiles{grid-template-columns:repeat(4,1fr)}
.panels{grid-template-columns:repeat(auto-fit,minmax(96px,1fr))}.panels figcaption{font-size:.62rem}}
"""
