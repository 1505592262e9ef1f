# %% [markdown]
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/crossent-jax/crossent_jax/blob/main/notebooks/01_three_formulas.ipynb)
#
# # Three formulas for cross-entropy · クロスエントロピーの三つの式
#
# Cross-entropy is written in three ways: over distributions, over a list of outcomes, and as the loss of a classifier.
# Here each is computed on a small example, with the mistakes that tutorials make along the way, and each number is checked.
# Afterwards you can say which formula you need, what its value means, and when a value must be wrong.
#
# クロスエントロピーには、確率分布、離散的な事象、分類器の損失という三通りの書き方があります。
# このノートブックでは、三つの式を小さな例で計算し、入門記事によくある間違いを一つずつ確かめます。
# 読み終えると、どの式を使うべきか、値が何を意味するか、どんな値がありえないかを判断できるようになります。

# %%
import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version

if importlib.util.find_spec("crossent_jax") is None:  # the versions that are here stay as they are
    here = [f"{name}=={version(name)}" for name in ("jax", "jaxlib", "numpy")]
    library = "crossent-jax[notebooks] @ git+https://github.com/crossent-jax/crossent_jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", library, *here], check=True)

import crossent_jax

FAST = os.environ.get("CROSSENT_JAX_FAST") == "1"  # small sizes, for a quick check
crossent_jax.show_versions()

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from crossent_jax import information
from crossent_jax.information import ClosedForm, Grid, MonteCarlo, Normal, Quadrature

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"  # told apart with any colour vision


def check(value, expected, tolerance=1e-4):
    assert abs(float(value) - expected) < tolerance, f"{float(value)} is not {expected}"


# %% [markdown]
# ## Formula 1: two distributions · 式1：二つの確率分布
#
# $$H(p, q) = -\mathbb{E}_{x \sim p}[\log q(x)] = -\int p(x) \log q(x)\,dx$$
#
# $p$ is what happens, $q$ is what we believe. With the natural logarithm the unit is the nat; with base 2 it is the bit.
# The example: the ages of visitors are $p = N(35, \sigma)$, and our guess is $q = N(40, \sigma)$.
#
# $p$ は実際の分布、$q$ は予想した分布です。
# 自然対数なら単位はナット（nat）、底が2の対数ならビット（bit）になります。
# 例として、来場者の年齢の分布を $p = N(35, \sigma)$、その予想を $q = N(40, \sigma)$ とします。

# %%
p, q = Normal(35.0, 5.0), Normal(40.0, 5.0)
cross, own, gap = information.cross_entropy(p, q), information.entropy(p), information.kl_divergence(p, q)
print(f"H(p, q) = {cross:.4f} nats = {information.cross_entropy(p, q, base=2):.4f} bits")
print(f"H(p)    = {own:.4f} nats")
print(f"KL(p‖q) = {gap:.4f} nats")
check(cross, 3.5284)
check(gap, 0.5)
check(own + gap, float(cross))

# %%
x = jnp.linspace(10, 65, 400)
density, log_p, log_q = jnp.exp(p.log_prob(x)), p.log_prob(x), q.log_prob(x)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="tight")
left.plot(x, density, color=BLUE, label="p = N(35, 5): what happens")
left.plot(x, jnp.exp(log_q), "--", color=ORANGE, label="q = N(40, 5): the guess")
left.set(title="The two densities", xlabel="age (years)", ylabel="probability density (1/year)", ylim=(0, 0.112))
left.legend(loc="upper right", fontsize=9)
right.plot(x, -density * log_q, "--", color=ORANGE, label=f"−p log q, area H(p, q) = {cross:.4f}")
right.plot(x, -density * log_p, color=BLUE, label=f"−p log p, area H(p) = {own:.4f}")
right.fill_between(x, -density * log_p, -density * log_q, color=ORANGE, alpha=0.25, label=f"signed area KL(p‖q) = {gap:.4f}")
right.set(title="The areas are the entropies", xlabel="age (years)", ylabel="integrand (nats/year)", ylim=(0, 0.42))
right.legend(loc="upper right", fontsize=9)
plt.show()

# %% [markdown]
# ### Four ways to take the expectation · 期待値の四つの計算方法
#
# For two normal distributions the integral has a closed form. Quadrature and sampling work for any density. A plain sum over
# 100 points from 0 to 100 is what one writes first: $-\sum_i p(x_i) \log q(x_i)\,\Delta x$, with the width $\Delta x$.
# For $\sigma = 10$ the sum loses the tail of $p$ below age 0 and gives 3.8441 instead of 3.8465.
#
# 正規分布どうしなら、積分は閉じた式（解析解）で求まります。
# 数値積分とモンテカルロ法は、どんな確率密度にも使えます。
# 最初に思いつくのは、0から100までの100点での和 $-\sum_i p(x_i) \log q(x_i)\,\Delta x$ でしょう。
# このとき、点の間隔 $\Delta x$ を忘れずに掛けます。
# $\sigma = 10$ では、0歳より下の裾が和に含まれないため、3.8465ではなく3.8441になります。

# %%
samples = 20_000 if FAST else 200_000
methods = {
    "closed form": ClosedForm(),
    "quadrature": Quadrature(),
    "grid of 100": Grid(0.0, 100.0, 100),
    "Monte Carlo": MonteCarlo(jax.random.key(0), samples),
}
expected = {5.0: {"grid of 100": 3.5284}, 10.0: {"grid of 100": 3.8441}}
for sigma, exact in [(5.0, 3.5284), (10.0, 3.8465)]:
    pair = Normal(35.0, sigma), Normal(40.0, sigma)
    for name, method in methods.items():
        result = information.cross_entropy(*pair, method=method)
        if isinstance(result, information.Estimate):
            print(f"σ = {sigma:2.0f}  {name:12} {result.value:.4f} ± {result.standard_error:.4f} (one standard error)")
            check(result.value, exact, 5 * float(result.standard_error))
        else:
            print(f"σ = {sigma:2.0f}  {name:12} {result:.4f}")
            check(result, expected[sigma].get(name, exact))
    print(f"σ = {sigma:2.0f}  KL(p‖q)      {information.kl_divergence(*pair):.4f}")
    check(information.kl_divergence(*pair), 12.5 / sigma**2)

# %% [markdown]
# ### Why 0.336 is impossible here · 0.336にはなりえない理由
#
# One tutorial prints $H \approx 0.336$ for this example without saying which $\sigma$ it used. No $\sigma$ gives that value.
# The mean of $p$ is 35, five away from that of $q$, so $\mathbb{E}_p[(x - 40)^2] \ge 25$ and
#
# $$H(p, q) = \tfrac12 \log(2 \pi \sigma_q^2) + \frac{\mathbb{E}_p[(x - 40)^2]}{2 \sigma_q^2}
# \;\ge\; \tfrac12 \log(2 \pi \sigma_q^2) + \frac{25}{2 \sigma_q^2} \;\ge\; \tfrac12 \log(50 \pi) + \tfrac12 = 3.028 .$$
#
# The last step takes the best $\sigma_q$, which is 5. The bound is 3.028 nats, or 4.369 bits, for any two widths,
# equal or not.
#
# この例で $H \approx 0.336$ と書いている入門記事がありますが、$\sigma$ の値は示されていません。
# 実は、どんな $\sigma$ を選んでもこの値にはなりません。
# $p$ の平均35は $q$ の平均40から5離れているので、$\mathbb{E}_p[(x - 40)^2] \ge 25$ です。
# これを上の式に代入し、最良の $\sigma_q = 5$ を選ぶと、下限が得られます。
# 下限は3.028ナット（4.369ビット）で、二つの $\sigma$ が等しくても異なっていても成り立ちます。

# %%
bound = 0.5 * np.log(50 * np.pi) + 0.5
widths = jnp.geomspace(1.5, 60, 300)
curves = {s: information.cross_entropy(Normal(35.0, s), Normal(40.0, widths)) for s in (0.01, 5.0, 10.0)}
print(f"the bound is {bound:.3f} nats = {bound / np.log(2):.3f} bits")
check(bound, 3.028, 5e-4)
check(bound / np.log(2), 4.369, 5e-4)
assert all(float(curve.min()) > bound - 1e-4 for curve in curves.values())
check(curves[0.01].min(), bound, 1e-3)  # a very narrow p comes as close as one likes

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for (sigma, curve), color, line in zip(curves.items(), (GREEN, BLUE, ORANGE), ("-", "--", "-."), strict=True):
    axes.plot(widths, curve, line, color=color, label=f"p = N(35, {sigma:g})")
axes.axhline(bound, color="black", linewidth=1, label=f"lower bound {bound:.3f}")
axes.axhline(0.336, color=PINK, linewidth=2, linestyle=":", label="0.336, claimed")
axes.set(title="Cross-entropy of p and q = N(40, $σ_q$): every curve stays above the bound", xscale="log", ylim=(0, 7))
axes.set(xlabel="$σ_q$ (years)", ylabel="H(p, q) (nats)", xticks=[2, 5, 10, 20, 50])
axes.xaxis.set_major_formatter("{x:g}")
axes.minorticks_off()
axes.legend(loc="upper right", fontsize=9, ncols=2)
plt.show()

# %% [markdown]
# The same tutorial describes the recipe in words: multiply $p$ and $q$, sum, negate. Taken literally the logarithm and
# $\Delta x$ are missing. The result is minus a sum of positive numbers: always negative, and no cross-entropy.
#
# 同じ記事は、手順を「$p$ と $q$ を掛けて合計し、符号を反転する」と説明しています。
# 文字どおりに計算すると、対数と間隔 $\Delta x$ が抜けています。
# 結果は正の数の和に負号を付けたものなので必ず負になり、クロスエントロピーではありません。

# %%
ages = np.linspace(0, 100, 100)
for sigma in (1.0, 5.0, 10.0):
    on_grid = [np.exp(np.asarray(Normal(mean, sigma).log_prob(jnp.asarray(ages, jnp.float32)))) for mean in (35.0, 40.0)]
    literal = -np.sum(on_grid[0] * on_grid[1])
    print(f"σ = {sigma:2.0f}: multiply, sum, negate = {literal:.4f}")
    assert literal < 0

# %% [markdown]
# ## Formula 2: a list of outcomes · 式2：離散分布
#
# $$H(p, q) = -\sum_i p(x_i) \log q(x_i)$$
#
# A picture shows a dog: $p = (1, 0)$. The model says 80 % dog: $q = (0.8, 0.2)$. Only the first outcome counts, since
# $0 \log 0.2 = 0$. The result is $-\log 0.8 = +0.2231$ nats or 0.3219 bits. A printed $-0.223$ has lost the minus sign of
# the formula: over a list of outcomes cross-entropy is never negative.
#
# 画像には犬が写っているので $p = (1, 0)$、モデルの予測は犬が80 %で $q = (0.8, 0.2)$ とします。
# 第二項は $0 \log 0.2 = 0$ なので、第一項だけが残ります。
# 答えは $-\log 0.8 = +0.2231$ ナット、すなわち0.3219ビットです。
# $-0.223$ としている記事は、式の先頭の負号を落としています。
# 離散分布のクロスエントロピーが負になることはありません。

# %%
dog, says = jnp.array([1.0, 0.0]), jnp.array([0.8, 0.2])
nats, bits = information.cross_entropy(dog, says), information.cross_entropy(dog, says, base=2)
print(f"H(p, q) = {nats:+.4f} nats = {bits:.4f} bits")
check(nats, 0.2231)
check(bits, 0.3219)

# %% [markdown]
# By convention $0 \log 0 = 0$, the limit of $x \log x$: what never happens costs nothing, even where $q$ is 0 too. NumPy's
# formula gives NaN there. The other way round, where something happens that the model called impossible, the cost
# is infinite.
#
# $x \log x$ の極限に合わせて、$0 \log 0 = 0$ と約束します。
# 起こらない事象は、$q = 0$ であっても損失に影響しません。
# 定義どおりにNumPyで書くと、ここでNaNになります。
# 逆に、モデルが「ありえない」とした事象が起きると、値は無限大です。

# %%
certain = np.array([1.0, 0.0])
with np.errstate(divide="ignore", invalid="ignore"):
    print(f"p = q = (1, 0), NumPy:        {-np.sum(certain * np.log(certain)):.1f}")
print(f"p = q = (1, 0), crossent_jax: {information.cross_entropy(dog, dog):z.1f}")
print(f"p = (1, 0), q = (0, 1):       {information.cross_entropy(dog, jnp.array([0.0, 1.0])):.1f}")
assert information.cross_entropy(dog, dog) == 0
assert information.cross_entropy(dog, jnp.array([0.0, 1.0])) == jnp.inf

# %% [markdown]
# ## Formula 3: the loss of a classifier · 式3：分類器の損失
#
# $$L = -\frac1N \sum_n t_n \log y_n$$
#
# Five pictures, dog (1) or not (0): $t = (1, 0, 1, 1, 0)$, and the model's probabilities of "dog" are
# $y = (0.8, 0.2, 0.6, 0.9, 0.3)$. If $t_n$ and $y_n$ are these single numbers, the formula gives 0.1679: correct arithmetic
# of the wrong formula. The two pictures without a dog have $t_n = 0$ and drop out. A yes/no label is a distribution over two
# outcomes, $(t, 1 - t)$, and both of them belong in the sum. That is the binary cross-entropy:
#
# $$L = -\frac1N \sum_n \bigl[t_n \log y_n + (1 - t_n) \log (1 - y_n)\bigr] = 0.2838$$
#
# 5枚の画像について、犬なら1、犬でなければ0とし、$t = (1, 0, 1, 1, 0)$ とします。
# モデルが「犬」と予測した確率は $y = (0.8, 0.2, 0.6, 0.9, 0.3)$ です。
# この数値をそのまま上の式に入れると0.1679で、計算は合っていますが、式の使い方が誤りです。
# $t_n = 0$ の2枚が、和からすっかり消えてしまうからです。
# 二値のラベルは二つの事象の分布 $(t, 1 - t)$ を表すので、両方の項が必要です。
# これが二値クロスエントロピー（バイナリクロスエントロピー）で、値は0.2838になります。

# %%
t, y = jnp.array([1, 0, 1, 1, 0]), jnp.array([0.8, 0.2, 0.6, 0.9, 0.3])
logits = jnp.log(y) - jnp.log1p(-y)  # what a model returns: sigmoid(logits) = y


def positives_only(logits):
    """The formula with single numbers t and y, as printed: for comparison only."""
    return -jnp.mean(t * jax.nn.log_sigmoid(logits))


binary = crossent_jax.binary_cross_entropy(logits, t)
two_classes = crossent_jax.cross_entropy(jnp.stack([0 * logits, logits], -1), t)
print(f"positives only:                {positives_only(logits):.4f}")
print(f"binary cross-entropy:          {binary:.4f}")
print(f"the same as two-class softmax: {two_classes:.4f}")
check(positives_only(logits), 0.1679)
check(binary, 0.2838)
check(two_classes, float(binary), 1e-6)

# %% [markdown]
# The difference is not one of taste. A model that answers "dog" to everything drives the incomplete loss to 0. The binary
# cross-entropy grows instead, and its gradient points back.
#
# この違いは好みの問題ではありません。
# すべての画像に「犬」と答えるモデルでも、不完全な損失は0に近づきます。
# 二値クロスエントロピーは逆に大きくなり、勾配は正しい方向を示します。

# %%
print("logit of all five   positives only   binary cross-entropy   its gradient in one non-dog's logit")
for z in (2.0, 5.0, 10.0, 20.0):
    everywhere = jnp.full(5, z)
    wrong, right = positives_only(everywhere), crossent_jax.binary_cross_entropy(everywhere, t)
    slope = jax.grad(crossent_jax.binary_cross_entropy)(everywhere, t)[1]
    print(f"{z:17.0f} {wrong:16.1e} {right:22.4f} {slope:+37.4f}")
    assert slope > 0
assert wrong < 1e-8 < 1 < right

# %% [markdown]
# ## What the value means · 値の意味
#
# $$H(p, q) = H(p) + \mathrm{KL}(p \,\|\, q), \qquad \mathrm{KL}(p \,\|\, q) \ge 0$$
#
# Cross-entropy is the uncertainty of $p$ itself plus the price of believing $q$. Three consequences are often told wrong:
#
# * A perfect prediction has $H(p, p) = H(p)$, which is 0 only if $p$ is certain. It is KL that becomes 0.
# * For densities it can be negative: a narrow density exceeds 1, so its logarithm is positive. $N(\mu, 0.1)$ has the entropy
#   $-0.8836$. Its value also depends on the unit of $x$; KL does not.
# * クロスエントロピー and 交差エントロピー are one thing: a transliteration and a translation of "cross-entropy".
#
# クロスエントロピーは、$p$ 自身の不確かさ $H(p)$ と、$q$ を信じることの代償KLとの和です。
# ここから、間違えやすい三つのことが分かります。
#
# * 予測が完全でも $H(p, p) = H(p)$ であり、0になるのは $p$ が確定的なときだけです。0になるのはKLのほうです。
# * 確率密度では負にもなります。幅の狭い密度は1を超え、その対数が正になるからです。
#   $N(\mu, 0.1)$ のエントロピーは $-0.8836$ です。
#   この値は $x$ の単位によって変わりますが、KLは変わりません。
# * クロスエントロピーと交差エントロピーは同じものです。前者はcross-entropyの音訳、後者は意訳です。

# %%
weather, forecast = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.7, 0.2, 0.1])
parts = information.entropy(weather), information.kl_divergence(weather, forecast)
print(f"H(p, q) = {information.cross_entropy(weather, forecast):.4f} = {parts[0]:.4f} + {parts[1]:.4f} = H(p) + KL(p‖q)")
itself, no_gap = information.cross_entropy(weather, weather), information.kl_divergence(weather, weather)
print(f"H(p, p) = {itself:.4f} = H(p), KL(p‖p) = {no_gap}")
check(information.cross_entropy(weather, forecast), float(sum(parts)), 1e-6)
check(itself, float(parts[0]), 1e-6)
assert parts[0] > 1 and no_gap == 0

narrow = Normal(35.0, 0.1)
print(f"H(N(35, 0.1)) = {information.entropy(narrow):.4f}")
check(information.entropy(narrow), -0.8836)
in_months = information.kl_divergence(Normal(12 * 35.0, 12 * 5.0), Normal(12 * 40.0, 12 * 5.0))
months = information.cross_entropy(Normal(12 * 35.0, 12 * 5.0), Normal(12 * 40.0, 12 * 5.0))
print(f"ages in months instead of years: H(p, q) = {months:.4f}, not {cross:.4f}; KL = {in_months:.4f}, still {gap:.4f}")
check(months, float(cross) + np.log(12))
check(in_months, 0.5)

# %% [markdown]
# ## Learning by cross-entropy · クロスエントロピーによる学習
#
# Minimising $H(p, q)$ over $q$ minimises KL, since $H(p)$ stays what it is. All of `information` can be differentiated, so a
# few steps of Adam move $q$ from $N(60, 15)$ to $p = N(35, 5)$. The loss goes down to $H(p) = 3.0284$ and not to 0.
#
# $H(p)$ は $q$ によらないので、$H(p, q)$ の最小化はKLの最小化と同じことです。
# `information` の関数はすべて微分できます。
# そこで、Adamで $q$ を $N(60, 15)$ から $p = N(35, 5)$ に近づけてみましょう。
# 損失は0ではなく、$H(p) = 3.0284$ まで下がります。

# %%
optimizer = optax.adam(optax.cosine_decay_schedule(1.0, 300))


def loss(parameters):
    return information.cross_entropy(p, Normal(40 + parameters["loc"], jnp.exp(parameters["log_scale"] / 10)))


@jax.jit
def step(parameters, state):
    value, gradient = jax.value_and_grad(loss)(parameters)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(parameters, updates), state, value


parameters = {"loc": jnp.float32(20), "log_scale": 10 * jnp.log(15.0)}
state, history, path = optimizer.init(parameters), [], []
for _ in range(300):
    path.append((40 + float(parameters["loc"]), float(jnp.exp(parameters["log_scale"] / 10))))
    parameters, state, value = step(parameters, state)
    history.append(float(value))
print(f"after 300 steps: q = N({path[-1][0]:.3f}, {path[-1][1]:.3f}), H(p, q) = {history[-1]:.4f}, H(p) = {own:.4f}")
check(path[-1][0], 35, 1e-2)
check(path[-1][1], 5, 1e-2)
check(history[-1], 3.0284, 1e-3)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="tight")
x = jnp.linspace(0, 100, 400)
left.plot(x, jnp.exp(p.log_prob(x)), color="black", linewidth=5, alpha=0.25, label="p = N(35, 5)")
for number, color in zip((0, 20, 60, 299), (PINK, ORANGE, GREEN, BLUE), strict=True):
    left.plot(x, jnp.exp(Normal(*path[number]).log_prob(x)), color=color, label=f"q before step {number + 1}")
left.set(title="q moves onto p", xlabel="age (years)", ylabel="probability density (1/year)")
left.legend(fontsize=9)
right.plot(range(1, 301), history, color=BLUE, label="H(p, q)")
right.axhline(float(own), color="black", linestyle="--", linewidth=1, label=f"H(p) = {own:.4f}")
right.set(title="The loss ends at H(p)", xlabel="step", ylabel="cross-entropy (nats)", ylim=(0, None))
right.legend(fontsize=9)
plt.show()
