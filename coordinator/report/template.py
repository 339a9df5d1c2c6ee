"""The page of ``report.html``. A Python string, for only a few file types travel in a Flower bundle."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ id }} – umbel</title>
<style>
:root { --ink: #0f172a; --soft: #64748b; --line: #e2e8f0; --paper: #f8fafc; --card: #fff; --accent: #4f46e5;
  --good: #0d9488; --bad: #be123c; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
svg text { font-family: inherit !important; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 72px; }
header p { color: var(--soft); margin: 0; }
h1 { font-size: 28px; margin: 0 0 4px; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 44px 0 14px; letter-spacing: -.01em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 14px; margin-top: 28px; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px; }
.tile b { display: block; font-size: 28px; font-weight: 650; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.tile.main { background: var(--accent); border-color: var(--accent); color: #fff; }
.tile.main span { color: #e0e7ff; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 14px; }
figure { margin: 0; }
figcaption { font-weight: 600; margin-bottom: 6px; }
figure svg { width: 100%; height: auto; display: block; }
.card { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: 13px; white-space: nowrap; }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td.n, th.n { text-align: right; }
td.up { color: var(--good); } td.down { color: var(--bad); }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.columns { columns: 2 420px; column-gap: 32px; }
.columns section { break-inside: avoid; margin-bottom: 16px; }
.columns h3 { font-size: 14px; margin: 0 0 4px; color: var(--accent); }
.note { color: var(--soft); font-size: 13.5px; }
.warn { border-left: 3px solid var(--bad); padding-left: 12px; }
@media print { body { background: #fff; } .tile, .card { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<header>
<h1>{{ id }}</h1>
<p>{{ base.name or "a base" }}{% if base.quantization %} ({{ base.quantization }}){% endif %} on {{ task_name }} ·
{{ clients }} clients · {{ s.rounds }} of {{ planned }} rounds · {{ s.seconds | duration }}{% if started %} ·
{{ started }}{% endif %}</p>
</header>
{% if not finished %}<p class="note warn">This run has not ended: the figures are those of the last finished round.</p>
{% endif %}
<div class="tiles">
<div class="tile"><b>{{ s.base | percent }}</b><span>base, {{ s.headline or "accuracy" }}</span></div>
<div class="tile main"><b>{{ s.federated | percent }}</b><span>federated</span></div>
{% if s.central is not none %}
<div class="tile"><b>{{ s.central | percent }}</b><span>central, pooled data</span></div>
{% endif %}
<div class="tile"><b>{{ s.gain | signed }}</b><span>points gained over the base</span></div>
{% for name, lost in s.forgotten.items() %}
<div class="tile"><b>{{ lost | signed }}</b><span>points forgotten, {{ name }}</span></div>
{% endfor %}
{% if s.privacy and s.privacy.epsilon is not none %}
<div class="tile"><b>ε {{ s.privacy.epsilon | number }}</b><span>at δ {{ s.privacy.delta | number }}</span></div>
{% endif %}
</div>

{% if plots %}
<h2>Rounds</h2>
<div class="plots">
{% for title, svg in plots.items() %}
<figure class="card"><figcaption>{{ title }}</figcaption>{{ svg | safe }}</figure>
{% endfor %}
</div>
{% endif %}

{% if s.sets %}
<h2>Evaluation sets</h2>
<div class="card"><table>
<tr><th>set</th><th class="n">examples</th><th class="n">base</th><th class="n">federated</th>
<th class="n">central</th><th class="n">change, points</th><th class="n">loss, base</th>
<th class="n">loss, federated</th></tr>
{% for row in s.sets %}
{% set any = row.federated or row.base %}
<tr><td>{{ row.name }}</td><td class="n">{{ any.count | number if any else "–" }}</td>
<td class="n">{{ (row.base.accuracy if row.base else none) | percent }}</td>
<td class="n">{{ (row.federated.accuracy if row.federated else none) | percent }}</td>
<td class="n">{{ (row.central.accuracy if row.central else none) | percent }}</td>
<td class="n {{ 'up' if row.change is not none and row.change > 0 else 'down' if row.change }}">
{{ row.change | signed }}</td>
<td class="n">{{ (row.base.loss if row.base else none) | number }}</td>
<td class="n">{{ (row.federated.loss if row.federated else none) | number }}</td></tr>
{% endfor %}
</table></div>
{% endif %}

{% if s.types %}
<h2>Question types, {{ s.headline }}</h2>
<div class="card"><table>
<tr><th>question</th><th class="n">examples</th><th class="n">base</th><th class="n">federated</th>
{% if s.central is not none %}<th class="n">central</th>{% endif %}</tr>
{% for row in s.types %}
<tr><td>{{ row.name }}</td><td class="n">{{ row.count | number }}</td><td class="n">{{ row.base | percent }}</td>
<td class="n">{{ row.federated | percent }}</td>
{% if s.central is not none %}<td class="n">{{ row.central | percent }}</td>{% endif %}</tr>
{% endfor %}
</table></div>
{% endif %}

<h2>Participation and traffic</h2>
<div class="card"><table>
<tr><th class="n">invited</th><th class="n">survived</th><th class="n">rejected</th><th class="n">missing</th>
<th class="n">down, all clients</th><th class="n">up, all clients</th><th class="n">adapter</th></tr>
<tr><td class="n">{{ s.cohort | number }}</td><td class="n">{{ s.survivors | number }}</td>
<td class="n">{{ s.rejected | number }}</td><td class="n">{{ s.missing | number }}</td>
<td class="n">{{ s.bytes_down | size }}</td><td class="n">{{ s.bytes_up | size }}</td>
<td class="n">{{ adapter.size | number }} values</td></tr>
</table>
<p class="note">Sums over all rounds. A rejected reply did not fit the adapter's spec or was not finite; it was
counted, never averaged.</p></div>

<h2>Privacy</h2>
<div class="card">
{% if s.privacy %}
<table>
{% for key, value in privacy_rows %}<tr><td>{{ key }}</td><td>{{ value }}</td></tr>{% endfor %}
</table>
{% if s.privacy.statement %}<p>{{ s.privacy.statement }}</p>{% endif %}
{% else %}<p class="note">No differential privacy: the adapter carries no guarantee about what can be learnt
from it.</p>
{% endif %}
</div>

<h2>Secure aggregation</h2>
<div class="card">
{% if secagg %}
<table>
<tr><td>threshold</td><td>{{ secagg.threshold if secagg.threshold is not none else "–" }}</td></tr>
<tr><td>mode</td><td>{{ secagg.mode or "–" }}</td></tr>
{% for key, value in secagg_rows %}<tr><td>{{ key }}</td><td>{{ value }}</td></tr>{% endfor %}
</table>
{% if stages %}
<table style="margin-top: 14px">
<tr><th>stage</th><th class="n">fewest alive</th><th class="n">median seconds</th><th class="n">bytes, all rounds</th>
</tr>
{% for name, alive, seconds, count in stages %}
<tr><td>{{ name }}</td><td class="n">{{ alive }}</td><td class="n">{{ seconds | number }}</td>
<td class="n">{{ count | size }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% else %}<p class="note">Off: the coordinator could read each client's update.</p>{% endif %}
</div>

<h2>Rounds in figures</h2>
<div class="card"><table>
<tr><th class="n">round</th><th class="n">accuracy</th><th class="n">training loss</th><th class="n">cohort</th>
<th class="n">survivors</th><th class="n">rejected</th><th class="n">missing</th><th class="n">down</th>
<th class="n">up</th><th class="n">seconds</th>{% if s.privacy %}<th class="n">ε</th>{% endif %}</tr>
{% for line in rounds %}
<tr><td class="n">{{ line.round }}</td>
<td class="n">{{ (line.evaluation[s.headline].accuracy if line.evaluation and s.headline in line.evaluation else none)
 | percent }}</td>
<td class="n">{{ line.train_loss | number }}</td><td class="n">{{ line.cohort }}</td>
<td class="n">{{ line.survivors }}</td><td class="n">{{ line.rejected }}</td><td class="n">{{ line.missing }}</td>
<td class="n">{{ line.bytes_down | size }}</td><td class="n">{{ line.bytes_up | size }}</td>
<td class="n">{{ line.seconds.get("total") | number }}</td>
{% if s.privacy %}<td class="n">{{ (line.privacy.epsilon if line.privacy else none) | number }}</td>{% endif %}</tr>
{% endfor %}
</table></div>

{% if skipped %}
<h2>Left out of the coordinator's data</h2>
<div class="card"><p>{{ skipped | length }} lines of its evaluation data could not be used.</p>
<ul>{% for sentence in skipped[:20] %}<li>{{ sentence }}</li>{% endfor %}</ul></div>
{% endif %}

<h2>Configuration</h2>
<div class="card columns">
{% for group, table in config.items() %}
<section><h3>{{ group }}</h3><table>
{% for key, value in table.items() %}<tr><td>{{ key }}</td><td class="n"><code>{{ value }}</code></td></tr>{% endfor %}
</table></section>
{% endfor %}
</div>

<h2>Base and versions</h2>
<div class="card"><table>
<tr><td>base</td><td><code>{{ base.name }}</code>, {{ base.parameters | number }} parameters,
{{ base.bytes | size }}, {{ base.quantization or "not quantized" }}</td></tr>
{% if base.hash %}<tr><td>base hash</td><td><code>{{ base.hash }}</code></td></tr>{% endif %}
{% if adapter.spec_hash %}<tr><td>adapter spec</td><td><code>{{ adapter.spec_hash }}</code></td></tr>{% endif %}
{% for name, version in versions.items() %}<tr><td>{{ name }}</td><td><code>{{ version }}</code></td></tr>{% endfor %}
</table></div>
</main>
</body>
</html>
"""
