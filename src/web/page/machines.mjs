// Machines: their disks, when they can be gone back to, and what changed where.

import { el, table } from './dom.mjs'
import { plural, size, time } from './format.mjs'
import { changedNow, heatMap, legend } from './heat.mjs'
import { timeline } from './timeline.mjs'

/** Of more machines what changed is shown when it is asked for. */
const MANY = 6

const sum = numbers => numbers.reduce((total, number) => total + number, 0)

function factsOf({ disks, checkpoints, older }) {
  return [
    `${plural(disks.length, 'disk')}, ${size(sum(disks.map(disk => disk.size)))}`,
    plural(checkpoints.length + older, 'checkpoint'),
    plural(sum(disks.map(({ clients }) => clients)), 'client'),
  ].join(' · ')
}

function lastPoint(machine, repositories) {
  const points = repositories.flatMap(({ name, holds }) =>
    (holds?.points ?? []).filter(point => point.machine === machine.name).map(point => ({ ...point, repository: name })),
  )
  const newest = points.sort((a, b) => a.time.localeCompare(b.time)).at(-1)
  return (
    newest && [
      el('span', { class: 'quiet' }, 'newest restore point '),
      time(newest.time),
      el('span', { class: 'quiet' }, ` in ${newest.repository}`),
    ]
  )
}

function article(machine, repositories, { isMany }) {
  const { name, disks, frozen } = machine
  const key = `machine ${name}`
  return el(
    'article',
    { 'aria-labelledby': `title ${key}`.replaceAll(' ', '-') },
    el(
      'div',
      { class: 'head' },
      el('h3', { id: `title ${key}`.replaceAll(' ', '-') }, name),
      el('p', {}, factsOf(machine)),
      el('p', {}, lastPoint(machine, repositories) || el('span', { class: 'quiet' }, 'no restore point that is known here')),
    ),
    frozen && el('p', { class: 'problem' }, 'Problem: its guest is frozen since ', time(frozen.since), `: ${frozen.reason}`),
    timeline(machine, repositories),
    table({
      caption: `Disks of ${name}`,
      stacks: true,
      columns: [
        { title: 'Disk', of: disk => el('span', { class: 'name' }, disk.name) },
        { title: 'Size', right: true, of: disk => size(disk.size) },
        { title: 'Since last checkpoint', right: true, of: disk => changedNow(disk) || '-' },
        { title: 'Clients', right: true, of: disk => disk.clients },
        {
          title: 'Image',
          of: ({ image, driver, 'read-only': readOnly }) => [
            el('code', {}, image ?? '-'),
            el('span', { class: 'quiet' }, ` ${driver}${readOnly ? ', read-only' : ''}`),
          ],
        },
      ],
      rows: disks,
    }),
    // Where nobody has asked yet what changes, the sentence above says so.
    disks
      .filter(({ heat }) => heat.rows.length > 0)
      .map(disk =>
        el(
          'details',
          { class: 'heat', 'data-key': `heat ${name}/${disk.name}`, open: disks.length <= 3 && !isMany },
          el('summary', {}, `What changed on ${disk.name}`),
          heatMap(machine, disk),
        ),
      ),
  )
}

export function machines({ machines, repositories, more }) {
  if (machines.length === 0)
    return el('p', { class: 'none' }, 'The configuration has no machines; docs/configuration.md says how one is written down.')
  return [
    machines.map(machine => article(machine, repositories, { isMany: machines.length > MANY })),
    machines.some(({ disks }) => disks.some(({ heat }) => heat.rows.length > 0)) ? legend() : [],
    more.machines > 0
      ? el('p', { class: 'quiet' }, `and ${plural(more.machines, 'machine')} more, which stillpoint status shows`)
      : [],
  ]
}
