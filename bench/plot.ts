// A plot of ratios: for each workload a bar for each program, as SVG that needs nothing else.

export interface Group {
  readonly title: string
  /** In the order of the programs; undefined where there is none. With the least and the most it was, for a line across the end of the bar. */
  readonly bars: readonly ({ readonly value: number; readonly least: number; readonly most: number } | undefined)[]
}

const COLOURS = ['#0b7285', '#66d9e8', '#868e96', '#e8590c', '#f2b134', '#5c940d', '#862e9c', '#212529']
const [LEFT, RIGHT, TOP, BAR, GAP, WIDTH] = [250, 60, 60, 14, 18, 900] as const

const escape = (text: string) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;')

/** Bars to the right, longer is better; a line at 1. */
export function plotRatios(title: string, programs: readonly string[], groups: readonly Group[]): string {
  const most = Math.max(1, ...groups.flatMap(({ bars }) => bars.flatMap(bar => (bar ? [bar.most] : []))))
  const scale = (value: number) => (value / most) * (WIDTH - LEFT - RIGHT)
  const parts: string[] = []
  const text = (x: number, y: number, words: string, more = '') =>
    parts.push(`<text x="${x}" y="${y}"${more}>${escape(words)}</text>`)
  text(10, 20, title, ' font-weight="bold"')
  programs.forEach((program, index) => {
    const x = 10 + index * ((WIDTH - 20) / programs.length)
    parts.push(`<rect x="${x}" y="32" width="12" height="12" fill="${COLOURS[index % COLOURS.length]}"/>`)
    text(x + 17, 42, program)
  })
  let y: number = TOP
  for (const { title: what, bars } of groups) {
    text(LEFT - 8, y + (bars.length * BAR) / 2 + 4, what, ' text-anchor="end"')
    bars.forEach((bar, index) => {
      if (bar) {
        const middle = y + BAR / 2
        parts.push(
          `<rect x="${LEFT}" y="${y + 1}" width="${scale(bar.value).toFixed(1)}" height="${BAR - 2}" fill="${COLOURS[index % COLOURS.length]}"/>`,
          `<line x1="${(LEFT + scale(bar.least)).toFixed(1)}" x2="${(LEFT + scale(bar.most)).toFixed(1)}" y1="${middle}" y2="${middle}" stroke="#212529"/>`,
        )
        text(LEFT + scale(bar.most) + 4, y + BAR - 3, bar.value.toFixed(2), ' font-size="10"')
      }
      y += BAR
    })
    y += GAP
  }
  const one = (LEFT + scale(1)).toFixed(1)
  parts.push(`<line x1="${one}" x2="${one}" y1="${TOP - 6}" y2="${y - GAP + 6}" stroke="#495057" stroke-dasharray="4 3"/>`)
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${y}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>${parts.join('')}</svg>\n`
}
