// What a person gets wrong in a configuration: every one is told at its place, with what to write instead.

import t from 'tap'
import { BadSettings } from '../../src/base/errors.ts'
import { readTargets } from '../../src/push/target.ts'
import { parseSettings } from '../../src/settings/load.ts'

/** `^` is where the mistake is. */
async function complaint(marked: string) {
  const offset = marked.indexOf('^')
  const before = marked.slice(0, offset).split('\n')
  try {
    const settings = parseSettings(Buffer.from(marked.replace('^', '')), '/s.yaml')
    await readTargets(settings.repositories)
    return 'nothing'
  } catch (error) {
    if (!(error instanceof BadSettings)) throw error
    return error.message.replace(`/s.yaml:${before.length}:${before.at(-1)!.length + 1}: `, 'there: ')
  }
}

const disk = 'machines: { db: { disks: { root: { image: /a } } } }\nrepositories: { r: { plugin: file, path: /r } }\n'
const schedule = (rest: string) => `${disk}schedules: { s: { machines: [db], repository: r, ${rest} } }\n`
const address = (port: number) =>
  `must be an address such as 127.0.0.1:${port}, [::1]:${port} or a host name, with a port up to 65535, not`
const size = 'must be a size such as 512M or 10GiB, in powers of 1024, not'
const duration = 'must be a time with its unit, such as 90s, 10m or 24h, and at most 24d, not'
const noTime =
  '"schedules.s.at" is no time of systemd (OnCalendar) or cron, such as "*-*-* 02:00", "Mon..Fri 22:30" or "0 2 * * 1-5":'

const mistakes: readonly (readonly [kind: string, marked: string, told: string])[] = [
  // how YAML is written
  ['a quote that is not closed', 'nbd: []\nstate: ^"/a\nmachines: {}\n', 'a quote is opened here and never closed'],
  ['another kind of it', "state: ^'/a\nmachines: {}\n", 'a quote is opened here and never closed'],
  [
    'quotes of a word processor',
    'state: ^“/var/lib/stillpoint”\n',
    'a printer’s quote is a letter like any other to YAML; use " or \'',
  ],
  [
    'blanks of a web page',
    'machines:\n^\u00a0 db: { disks: { root: { image: /a } } }\n',
    'what indents this line is no plain blank (U+00A0); YAML wants spaces',
  ],
  ['no blank behind the colon', '^state:/a\nnbd: []\n', 'a key ends with ":" and a blank; one of them is missing here'],
  [
    'a line that is indented wrongly',
    'machines:\n  db:\n    disks:\n      root: { image: /a }\n^     data: { image: /b }\n',
    'this line is indented otherwise than those it belongs to',
  ],
  [
    'a colon in a text',
    'machines:\n  db:\n    disks: { root: { image: /a } }\n    hooks:\n      after: ^logger backup: done\n',
    'a text with ": " in it must be in quotes; and a key of its own needs a line of its own',
  ],
  // paths
  ['a variable', 'state: ^$HOME/state\n', '"state" must be written out: variables are not filled in here'],
  ['a home folder', 'scratch: { path: ^~/scratch }\n', '"scratch.path" must be written out: "~" is nobody’s home folder here'],
  [
    'an address for a folder',
    'repositories: { r: { plugin: file, path: ^s3://bucket/backup } }\n',
    '"repositories.r.path" must be a folder; for an address there is plugin: s3, with its endpoint and bucket',
  ],
  [
    'a secret by a relative path',
    'repositories: { r: { plugin: file, path: /r, encryption: { key: ^file:key } } }\n',
    '"repositories.r.encryption.key" file: needs an absolute path',
  ],
  // shapes
  [
    'the image where the disk is',
    'machines: { db: { disks: { root: ^a.raw } } }\n',
    '"machines.db.disks.root" must be a map, and is the text "a.raw"; its keys are "image", "format", "bitmaps", "read-only", "max-clients", "single-writer"',
  ],
  [
    'disks without names',
    'machines: { db: { disks: ^[ { image: a.raw } ] } }\n',
    '"machines.db.disks" must be a map, and is a list: each needs a name and ":" before it',
  ],
  [
    'one machine where a list is',
    `${disk}schedules: { s: { machines: ^db, repository: r } }\n`,
    '"schedules.s.machines" must be a list, and is the text "db": write [ ] around it',
  ],
  [
    'encryption: true',
    'repositories: { r: { plugin: file, path: /r, encryption: ^true } }\n',
    '"repositories.r.encryption" must be a map, and is true; its keys are "key"',
  ],
  [
    'an image that is forgotten',
    'machines: { db: { disks: { root: { image: ^} } } }\n',
    '"machines.db.disks.root.image" is empty: give it a value, or leave the key out',
  ],
  // names
  [
    'a machine with a slash',
    'machines: { ^a/b: { disks: { root: { image: /a } } } }\n',
    '"machines.a/b": a name begins with a letter and goes on with letters, digits, "-" and "_"',
  ],
  [
    'a machine with dots',
    'machines: { ^db.example.net: { disks: { root: { image: /a } } } }\n',
    '"machines.db.example.net": a name begins with a letter and goes on with letters, digits, "-" and "_"',
  ],
  [
    'a plugin in capitals',
    'repositories: { r: { plugin: ^S3, endpoint: https://x.example } }\n',
    '"repositories.r.plugin" \'S3\' does not load: Cannot find package \'S3\'; did you mean "s3"?',
  ],
  // units and numbers
  ['a size with a comma', 'scratch: { limit: ^"1,5G" }\n', `"scratch.limit" ${size} "1,5G"`],
  ['a negative size', 'scratch: { limit: ^-5G }\n', `"scratch.limit" ${size} "-5G"`],
  ['a time in words', 'sessions: { expire: ^1 day }\n', `"sessions.expire" ${duration} "1 day"`],
  ['a negative window', schedule('window: ^-4h'), `"schedules.s.window" ${duration} "-4h"`],
  ['negative retention', schedule('keep: { daily: ^-3 }'), '"schedules.s.keep.daily" must be 1 or more'],
  ['retention in days', schedule('keep: { daily: ^14d }'), '"schedules.s.keep.daily" must be a number, and is the text "14d"'],
  ['a port alone', 'web: { listen: ^9751 }\n', `"web.listen" ${address(9751)} 9751`],
  ['IPv6 without brackets', 'nbd: [ { tcp: ^"::1:10809" } ]\n', `"nbd[1].tcp" ${address(10809)} "::1:10809"`],
  ['a URI', 'nbd: [ { tcp: ^"nbd://127.0.0.1" } ]\n', `"nbd[1].tcp" ${address(10809)} "nbd://127.0.0.1"`],
  ['a port that is none', 'nbd: [ { tcp: ^"127.0.0.1:99999" } ]\n', `"nbd[1].tcp" ${address(10809)} "127.0.0.1:99999"`],
  // when
  ['a minute of cron', schedule('at: ^61 2 * * *'), `${noTime} Invalid value for minute: 61`],
  [
    'a field of cron too few',
    schedule('at: ^0 2 * *'),
    `${noTime} cron has five fields (minute, hour, day, month, weekday), and here are 4`,
  ],
  [
    'an hour as people say it',
    schedule('at: ^2am'),
    `${noTime} "2am" is no date such as *-*-01 or 2027-12-24, and no time such as 02:00`,
  ],
  [
    'an hour as a number',
    schedule('at: ^2'),
    '"schedules.s.at" must be an expression of systemd or cron in quotes, such as "*-*-* 02:00", or a list of them, and is the number 2',
  ],
  [
    'summer time as a zone',
    schedule('at: daily, time-zone: ^CEST'),
    '"schedules.s.time-zone" names no time zone such as Europe/Berlin or UTC: "CEST"',
  ],
  ['a zone that is misspelt', schedule('at: ^02:00 Europe/Belrin'), `${noTime} there is no time zone "Europe/Belrin"`],
]

t.test('each mistake is told where it is, with what to do', async t => {
  for (const [kind, marked, told] of mistakes) t.equal(await complaint(marked), `there: ${told}`, kind)
  t.equal(await complaint(schedule('at: "0 2 * * *"')), 'nothing')
  t.equal(await complaint('state: /a\r\nnbd: []\r\n'), 'nothing', 'Windows’ ends of lines are not minded')
  t.equal(await complaint('{ "state": "/a", "nbd": [] }'), 'nothing', 'nor is JSON')
})
