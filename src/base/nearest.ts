// "Did you mean": the word that somebody probably wanted to write.

/** How many letters to add, drop, change or swap with their neighbour until `a` is `b`. */
function distance(a: string, b: string): number {
  const rows = [Array.from({ length: b.length + 1 }, (_, column) => column)]
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    const above = rows[i - 1]!
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1] ? rows[i - 2]![j - 2]! + 1 : Infinity
      row.push(Math.min(row[j - 1]! + 1, above[j]! + 1, above[j - 1]! + same, swapped))
    }
    rows.push(row)
  }
  return rows[a.length]![b.length]!
}

const simple = (text: string) => text.slice(0, 64).toLowerCase().replaceAll('_', '-')

/** The nearest of the words, or undefined where none is so near that it is likely. */
export function nearest(word: string, words: readonly string[]): string | undefined {
  const ranked = words.map(other => ({ other, far: distance(simple(word), simple(other)) })).sort((a, b) => a.far - b.far)
  const [best] = ranked
  return best && best.far <= Math.max(1, Math.floor(best.other.length / 3)) ? best.other : undefined
}
