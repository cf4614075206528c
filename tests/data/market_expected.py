#!/usr/bin/env python3
"""Computes what `tests/market.rs` compares the market example with; writes `market_expected.csv` beside itself.

Needs Python 3 only. It shares nothing with the example: 50-digit decimals instead of floats, direct sums over each window,
the textbook forms of RSI (100 - 100 / (1 + RS)) and of the variance (mean of squares less square of mean), EMAs as
alpha * new + (1 - alpha) * old, weeks by the ISO calendar (the exchanges close on Saturday and Sunday, so a week that ends on
Friday has the same trading days).

Lines of the output: `rows,SYMBOL,indicator,scale,number of rows,empty values by column...` and
`value,SYMBOL,indicator,scale,row from 0,date,value by column...`, an empty value being an empty field.
"""

import csv
import random
from datetime import date
from decimal import Decimal, getcontext
from itertools import groupby
from pathlib import Path

getcontext().prec = 50

HERE = Path(__file__).resolve().parent
PRICES = HERE.parent.parent / "examples" / "data" / "market" / "stocks.csv"
SAMPLES = 8

SCALES = {
    "daily": lambda day: day.toordinal(),
    "weekly": lambda day: day.isocalendar()[:2],
    "monthly": lambda day: day.isoformat()[:7],
}


def average(values):
    return sum(values) / len(values)


def ema(values, n):
    """By index; None before the n-th value."""
    out = [None] * (n - 1)
    if len(values) < n:
        return [None] * len(values)
    out.append(average(values[:n]))
    alpha = Decimal(2) / Decimal(n + 1)
    for value in values[n:]:
        out.append(alpha * value + (1 - alpha) * out[-1])
    return out


def windows(values, n, formula):
    return [formula(values[i + 1 - n : i + 1]) if i + 1 >= n else None for i in range(len(values))]


def variance(values, sample):
    n = len(values)
    population = sum(v * v for v in values) / n - average(values) ** 2
    return population * n / (n - 1) if sample else population


def sma20(closes):
    return [windows(closes, 20, average)]


def ema20(closes):
    return [ema(closes, 20)]


def rsi14(closes):
    changes = [b - a for a, b in zip(closes, closes[1:])]
    ups = [c if c > 0 else Decimal(0) for c in changes]
    downs = [-c if c < 0 else Decimal(0) for c in changes]
    out = [None] * min(14, len(closes))
    up, down = average(ups[:14]) if ups else None, average(downs[:14]) if downs else None
    for i in range(13, len(changes)):
        if i > 13:
            up, down = (13 * up + ups[i]) / 14, (13 * down + downs[i]) / 14
        out.append(100 - 100 / (1 + up / down) if down else Decimal(100 if up else 50))
    return [out]


def bollinger20(closes):
    def band(k):
        return windows(closes, 20, lambda w: average(w) + k * variance(w, sample=False).sqrt())

    return [band(-2), band(0), band(2)]


def macd(closes):
    line = [
        fast - slow if fast is not None and slow is not None else None
        for fast, slow in zip(ema(closes, 12), ema(closes, 26))
    ]
    defined = [v for v in line if v is not None]
    signal = [None] * (len(line) - len(defined)) + ema(defined, 9)
    histogram = [m - s if m is not None and s is not None else None for m, s in zip(line, signal)]
    return [line, signal, histogram]


def volatility20(closes):
    returns = [(b / a).ln() for a, b in zip(closes, closes[1:])]
    return [[None] + windows(returns, 20, lambda w: variance(w, sample=True).sqrt())]


INDICATORS = [sma20, ema20, rsi14, bollinger20, macd, volatility20]


def prices():
    by_symbol = {}
    with open(PRICES, newline="") as file:
        for row in csv.DictReader(file):
            entry = (date.fromisoformat(row["Date"]), Decimal(row["Adj Close"]))
            by_symbol.setdefault(row["Ticker"], []).append(entry)
    return by_symbol


def text(value):
    return "" if value is None else f"{value:.20e}"


def tables():
    for symbol, daily in sorted(prices().items()):
        for scale, period in SCALES.items():
            series = [list(days)[-1] for _, days in groupby(daily, key=lambda entry: period(entry[0]))]
            dates, closes = [d for d, _ in series], [c for _, c in series]
            for indicator in INDICATORS:
                yield symbol, indicator.__name__, scale, dates, indicator(closes)


def main():
    choose = random.Random(2026)
    with open(HERE / "market_expected.csv", "w") as out:
        for symbol, indicator, scale, dates, columns in tables():
            key = f"{symbol},{indicator},{scale}"
            rows = len(dates)
            assert all(len(column) == rows for column in columns)
            empty = [sum(v is None for v in column) for column in columns]
            print("rows", key, rows, *empty, sep=",", file=out)
            # The first row, the last empty and the first full one of each column, the last row, and some others.
            picked = {0, rows - 1, *choose.sample(range(rows), min(rows, SAMPLES))}
            picked |= {row for n in empty for row in (n - 1, n) if 0 <= row < rows}
            for row in sorted(picked):
                values = [text(column[row]) for column in columns]
                print("value", key, row, dates[row], *values, sep=",", file=out)


if __name__ == "__main__":
    main()
