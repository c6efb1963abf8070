// The heat map of a disk: a row for each checkpoint, in it the disk from its beginning to its end, darker where more of it was written.

import { el, svg, table } from './dom.mjs'
import { plural, share, size, time } from './format.mjs'

const LEVELS = 5

/** 0: nothing changed; then by the share that did, so that a single granule is still seen. */
const levelOf = (count, each) => (count === 0 ? 0 : Math.min(LEVELS, 1 + Math.floor(Math.sqrt(count / each) * (LEVELS - 0.001))))

/** Neighbours of one level are one rectangle. */
function runsOf(cells, { each, granules }) {
  const runs = []
  for (const [index, count] of cells.entries()) {
    const level = levelOf(count, Math.min(each, granules - index * each))
    const last = runs.at(-1)
    if (last?.level === level) last.length++
    else runs.push({ from: index, length: 1, level })
  }
  return runs
}

/** Where most of it lies, in words: the tenths of the disk that hold the most. */
function wordsOf({ cells, changed }, { size: whole }) {
  if (changed === 0) return 'nothing changed'
  const tenths = Array.from({ length: 10 }, () => 0)
  for (const [index, count] of cells.entries()) tenths[Math.floor((index * 10) / cells.length)] += count
  const most = tenths.indexOf(Math.max(...tenths))
  const sum = tenths.reduce((total, count) => total + count, 0)
  const place = `between ${size((whole * most) / 10)} and ${size((whole * (most + 1)) / 10)}`
  return `${size(changed)} changed, ${share(tenths[most], sum)} % of that ${place}`
}

function strip(row, disk) {
  const { heat } = disk
  if (row.cells === undefined) return el('span', { class: 'problem' }, `Not known: ${row.problem}`)
  const words = wordsOf(row, disk)
  const bytes = heat.each * heat.granularity
  return svg(
    'svg',
    {
      class: 'strip',
      viewBox: `0 0 ${Math.max(1, row.cells.length)} 1`,
      preserveAspectRatio: 'none',
      role: 'img',
      'aria-label': words,
    },
    svg('title', {}, words),
    runsOf(row.cells, heat)
      .filter(({ level }) => level > 0)
      .map(({ from, length, level }) =>
        svg(
          'rect',
          { x: from, y: 0, width: length, height: 1, class: `heat-${level}` },
          svg('title', {}, `${size(from * bytes)} to ${size(Math.min(disk.size, (from + length) * bytes))}`),
        ),
      ),
  )
}

export function heatMap(machine, disk) {
  const { rows } = disk.heat
  const times = new Map(machine.checkpoints.map(({ name, time }) => [name, time]))
  return table({
    caption: `What changed on ${machine.name}/${disk.name}, from one checkpoint to the next`,
    className: 'heat',
    columns: [
      {
        title: 'Since',
        of: ({ checkpoint }) => [
          el('span', { class: 'name' }, checkpoint),
          times.has(checkpoint) && el('span', { class: 'quiet' }, time(times.get(checkpoint), { relative: false })),
        ],
      },
      { title: 'Changed', right: true, of: ({ changed }) => (changed === undefined ? '?' : size(changed)) },
      { title: `Where, from 0 to ${size(disk.size)}`, className: 'map', of: row => strip(row, disk) },
    ],
    rows,
  })
}

export const legend = () =>
  el(
    'p',
    { class: 'legend quiet' },
    'Share of a place that changed: ',
    el(
      'span',
      { class: 'scale' },
      ['none', 'little', '', '', '', 'all'].flatMap((word, level) => [
        svg(
          'svg',
          { viewBox: '0 0 1 1', class: 'swatch', 'aria-hidden': 'true' },
          svg('rect', { width: 1, height: 1, class: `heat-${level}` }),
        ),
        word && el('span', {}, word),
      ]),
    ),
  )

export const changedNow = ({ heat: { rows } }) => (rows[0]?.changed === undefined ? '' : size(rows[0].changed))
export const cellsText = ({ heat }) =>
  `${plural(Math.ceil(heat.granules / heat.each), 'place')} of ${size(heat.each * heat.granularity)}`
