// The timeline of a machine: its checkpoints and its restore points, each lane from the oldest to now. The same is told by a table below it.

import { el, svg, table } from './dom.mjs'
import { shortClock, shortDay, shortTime, size, time } from './format.mjs'

const WIDTH = 1000
const LANE = 22
const DAY = 86_400_000
const STEPS = [
  3_600_000,
  3 * 3_600_000,
  6 * 3_600_000,
  12 * 3_600_000,
  DAY,
  2 * DAY,
  7 * DAY,
  14 * DAY,
  30 * DAY,
  91 * DAY,
  365 * DAY,
]

/** At most six, at round times of the reader's clock. */
function ticksOf(from, to) {
  const step = STEPS.find(step => (to - from) / step <= 6)
  if (step === undefined || to - from < 1_800_000) return []
  const offset = new Date(from).getTimezoneOffset() * 60_000
  const ticks = []
  for (let at = Math.ceil((from - offset) / step) * step + offset; at <= to; at += step)
    ticks.push({ at, text: step < DAY ? shortClock(new Date(at)) : shortDay(new Date(at)) })
  return ticks
}

export function lanesOf({ name, checkpoints }, repositories) {
  const lanes = [
    { title: 'checkpoints', kind: 'checkpoint', marks: checkpoints.map(one => ({ time: one.time, name: one.name, ...one })) },
  ]
  for (const { name: repository, holds } of repositories) {
    const points = holds?.points.filter(({ machine }) => machine === name) ?? []
    if (points.length > 0)
      lanes.push({
        title: repository,
        kind: 'point',
        marks: points.map(one => ({ ...one, name: one.point.slice(one.point.lastIndexOf('/') + 1) })),
      })
  }
  return lanes.filter(({ marks }) => marks.length > 0)
}

const detailOf = ({ changed, stored, consistency, description, problem }) =>
  [
    description,
    changed !== undefined && `${size(changed)} changed, ${size(stored)} stored`,
    consistency === 'quiesced' ? 'guest quiesced' : 'as after a power cut',
    problem && `not usable: ${problem}`,
  ]
    .filter(Boolean)
    .join(' · ')

export function timeline(machine, repositories) {
  const lanes = lanesOf(machine, repositories)
  if (lanes.length === 0) return el('p', { class: 'none' }, 'No checkpoint and no restore point yet.')
  const times = lanes.flatMap(({ marks }) => marks.map(mark => Date.parse(mark.time)))
  const to = Date.now()
  const oldest = Math.min(to, ...times)
  // So that a single one does not stand at the edge.
  const from = oldest - Math.max(60_000, (to - oldest) * 0.02)
  const at = ms => ((ms - from) / (to - from)) * WIDTH
  const height = lanes.length * LANE
  const counts = lanes.map(({ title, marks }) => `${marks.length} in ${title}`).join(', ')
  const chart = svg(
    'svg',
    {
      viewBox: `0 0 ${WIDTH} ${height}`,
      preserveAspectRatio: 'none',
      class: 'timeline',
      height,
      role: 'img',
      'aria-label': `From ${shortTime(new Date(oldest))} to now: ${counts}`,
    },
    ticksOf(from, to).map(({ at: ms }) => svg('line', { x1: at(ms), x2: at(ms), y1: 0, y2: height, class: 'grid' })),
    lanes.map(({ marks, kind }, lane) => {
      const y = lane * LANE + LANE / 2
      return [
        svg('line', { x1: 0, x2: WIDTH, y1: y, y2: y, class: 'lane' }),
        marks.map(mark =>
          // A line of no length with round ends is a dot, whatever the picture is stretched to.
          svg(
            'path',
            {
              d: kind === 'point' ? `M${at(Date.parse(mark.time))} ${y}v0.01` : `M${at(Date.parse(mark.time))} ${y - 6}v12`,
              class: `${kind}${mark.problem ? ' unusable' : ''}`,
            },
            svg('title', {}, `${mark.name}: ${shortTime(new Date(mark.time))} · ${detailOf(mark)}`),
          ),
        ),
      ]
    }),
  )
  const labels = ticksOf(from, to)
  return el(
    'div',
    { class: 'times' },
    el(
      'div',
      { class: 'lanes', 'aria-hidden': 'true' },
      lanes.map(({ title, kind }) => el('span', { class: `lane-title ${kind}` }, title)),
    ),
    el('div', { class: 'chart' }, chart, axis(labels, at)),
    el('details', { 'data-key': `times ${machine.name}` }, el('summary', {}, 'As a table'), tableOf(machine, lanes)),
  )
}

/** The labels are text of the page's size: a picture that is stretched would stretch them too. */
function axis(ticks, at) {
  const line = el('div', { class: 'axis', 'aria-hidden': 'true' })
  for (const { at: ms, text } of ticks) {
    const label = el('span', {}, text)
    label.style.insetInlineStart = `${at(ms) / (WIDTH / 100)}%`
    line.append(label)
  }
  const now = el('span', { class: 'now' }, 'now')
  line.append(now)
  return line
}

const tableOf = ({ name, older }, lanes) => [
  table({
    caption: `Checkpoints and restore points of ${name}, newest first`,
    columns: [
      { title: 'Time', of: mark => time(mark.time) },
      { title: 'What', of: ({ lane }) => lane },
      { title: 'Name', of: mark => el('span', { class: 'name' }, mark.name) },
      { title: 'How', of: detailOf },
    ],
    rows: lanes
      .flatMap(({ title, kind, marks }) =>
        marks.map(mark => ({ ...mark, lane: kind === 'point' ? `restore point in ${title}` : 'checkpoint' })),
      )
      .sort((a, b) => b.time.localeCompare(a.time))
      .slice(0, 200),
  }),
  older > 0 && el('p', { class: 'quiet' }, `and ${older} older checkpoints: stillpoint checkpoint list ${name}`),
]
