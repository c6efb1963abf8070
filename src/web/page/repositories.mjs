// Repositories: what they hold, how they have grown, and whether they could be read.

import { el, svg, table } from './dom.mjs'
import { plural, shortTime, size, time } from './format.mjs'

const WIDTH = 600
const HEIGHT = 64

/** What the restore points that are there have added, one after another: a step for each. */
function growth(name, points) {
  const times = points.map(point => Date.parse(point.time))
  const [from, to] = [Math.min(...times), Math.max(Date.now(), ...times)]
  const total = points.reduce((sum, { stored }) => sum + stored, 0)
  if (total === 0) return undefined
  const x = ms => ((ms - from) / Math.max(1, to - from)) * WIDTH
  const y = bytes => HEIGHT - 2 - (bytes / total) * (HEIGHT - 6)
  let sum = 0
  let path = `M0 ${HEIGHT}`
  for (const [index, { stored }] of points.entries()) {
    path += `L${x(times[index]).toFixed(1)} ${y(sum).toFixed(1)}`
    sum += stored
    path += `V${y(sum).toFixed(1)}`
  }
  path += `H${WIDTH}V${HEIGHT}Z`
  const words = `Growth of ${name}: ${plural(points.length, 'restore point')} have added ${size(total)} since ${shortTime(new Date(from))}`
  return el(
    'figure',
    { class: 'growth' },
    svg(
      'svg',
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': words },
      svg('title', {}, words),
      svg('path', { d: path, class: 'area' }),
    ),
    el(
      'figcaption',
      { class: 'quiet' },
      `${size(total)} added by ${plural(points.length, 'restore point')} since ${shortTime(new Date(from))}`,
    ),
  )
}

function perMachine(points) {
  const machines = new Map()
  for (const point of points) {
    const one = machines.get(point.machine) ?? { machine: point.machine, count: 0, stored: 0, oldest: point.time }
    machines.set(point.machine, {
      ...one,
      count: one.count + 1,
      stored: one.stored + point.stored,
      newest: point.time,
      size: point.size,
      last: point.stored,
    })
  }
  return [...machines.values()]
}

function stateOf({ reading, problem, missing, seen }) {
  if (missing) return el('span', { class: 'so-so' }, 'not made yet')
  if (problem !== undefined) return el('span', { class: 'bad' }, `could not be read${seen ? '; what is shown is older' : ''}`)
  if (seen === undefined) return el('span', { class: 'quiet' }, reading ? 'is being read ...' : 'not read yet')
  return [el('span', { class: 'good' }, 'read'), ' ', time(seen)]
}

function article(repository) {
  const { name, plugin, holds, problem, missing } = repository
  const id = `repository-${name}`
  return el(
    'article',
    { 'aria-labelledby': id },
    el(
      'div',
      { class: 'head' },
      el('h3', { id }, name),
      el(
        'p',
        {},
        holds
          ? `${size(holds.bytes)} in ${plural(holds.packs, 'pack')} · ${plural(holds.points.length + holds.older, 'restore point')}`
          : plugin,
      ),
      el('p', {}, stateOf(repository)),
    ),
    missing
      ? el('p', {}, 'Make it: ', el('code', {}, `stillpoint repo init ${name}`))
      : problem !== undefined && el('p', { class: 'problem' }, `Problem: ${problem}`),
    holds && [
      el('p', { class: 'quiet' }, el('code', {}, holds.location), ` · ${holds.encrypted ? 'encrypted' : 'not encrypted'}`),
      holds.points.length > 0 && [
        growth(name, holds.points),
        table({
          caption: `What ${name} holds of each machine`,
          stacks: true,
          columns: [
            { title: 'Machine', of: one => el('span', { class: 'name' }, one.machine) },
            { title: 'Restore points', right: true, of: one => one.count },
            { title: 'Disks', right: true, of: one => size(one.size) },
            { title: 'Stored', right: true, of: one => size(one.stored) },
            { title: 'By the newest', right: true, of: one => size(one.last) },
            { title: 'Newest', of: one => time(one.newest) },
            { title: 'Oldest', of: one => time(one.oldest) },
          ],
          rows: perMachine(holds.points),
        }),
      ],
      holds.older > 0 && el('p', { class: 'quiet' }, `and ${plural(holds.older, 'older restore point')}`),
    ],
  )
}

export const repositories = ({ repositories }) =>
  repositories.length === 0 ? el('p', { class: 'none' }, 'None: nothing can be pushed.') : repositories.map(article)
