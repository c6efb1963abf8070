// stillpoint repo key: the keys that open an encrypted repository.

import { Option } from 'commander'
import { text } from 'node:stream/consumers'
import { readSecret } from '../../base/secret-reference.ts'
import type { KeyedRepository } from '../../repository/key-slots.ts'
import { verb } from '../define.ts'
import { Misuse } from '../failure.ts'
import { formatTime } from '../format.ts'
import { configOption, openPlace, repositoryArgument, type ConfigOption } from '../open-repository.ts'
import { print, printJson } from '../output.ts'
import { table } from '../table.ts'

interface Options extends ConfigOption {
  readonly newKey?: string
  readonly label?: string
}

const actions = ['list', 'add', 'remove', 'change'] as const
type Action = (typeof actions)[number]

const shortSlot = (key: string) => key.replace(/^keys\//, '')

export const keyVerb = verb<{ action: Action; repository: string; slot?: string }, Options>({
  name: 'key',
  summary: 'list, add, remove or change the keys that open a repository',
  details:
    'Each key has a slot of its own, and any of them opens the repository; the configuration has one of them. Data is not encrypted anew, so whoever has copied the repository and an old key can read what was in it then. The last slot cannot be removed, nor the only one that the key of the configuration opens. After a change the configuration needs the new key.',
  arguments: {
    '<action>': actions.join(', '),
    ...repositoryArgument,
    '[slot]': 'to be removed: its id, as `repo key list` shows it, or the beginning of it',
  },
  options: [
    configOption(),
    new Option(
      '--new-key <reference>',
      'to be added, or changed to: file:/PATH, env:NAME, credential:NAME, or - for standard input',
    ),
    new Option('--label <text>', 'of the new slot, for people'),
  ],
  namesDaemon: false,
  examples: [
    ['stillpoint repo key list offsite', 'which slots there are, and which of them the configured key opens'],
    [
      "stillpoint repo key add offsite --new-key file:/media/usb/offsite.key --label 'in the safe'",
      'another key, to be kept elsewhere',
    ],
    ['stillpoint repo key remove offsite 1a2b3c4d', 'that key opens it no more'],
    ['stillpoint repo key change offsite --new-key file:/etc/stillpoint/new.key', 'instead of the one in the configuration'],
  ],
  async run({ args: { action, repository: name, slot }, options, json }) {
    if (!actions.includes(action)) throw new Misuse(`'${action as string}' is none of ${actions.join(', ')}`)
    if ((slot !== undefined) !== (action === 'remove'))
      throw new Misuse(
        slot === undefined ? 'say which slot; "stillpoint repo key list" shows them' : `'${slot}' is one word too many`,
      )
    const makes = action === 'add' || action === 'change'
    if ((options.newKey !== undefined) !== makes)
      throw new Misuse(makes ? 'say --new-key: where the new key is' : `--new-key makes no sense with ${action}`)
    await using place = await openPlace(name, options)
    const { target, passphrase } = place
    const { readRepositoryFile } = await import('../../repository/repository-file.ts')
    const repository = { target, passphrase, file: await readRepositoryFile(target) }
    const told = await act(action, repository, { slot, ...options })
    if (json) return told.forEach(one => printJson({ repository: name, ...one }))
    if (action === 'list')
      return print(
        table(told, [
          { title: 'SLOT', of: ({ slot: id }) => id },
          { title: 'MADE', of: ({ created }) => (created ? formatTime(created) : '') },
          { title: 'OPENED BY THE CONFIGURED KEY', of: ({ opens, damaged }) => (damaged ? 'damaged' : opens ? 'yes' : 'no') },
          { title: 'LABEL', of: ({ label }) => label },
        ]),
      )
    for (const { slot: id, done } of told) print(`${target.location}: key slot ${id} ${done}\n`)
    if (action === 'change') print('Put the new key into the configuration now: the old one opens it no more.\n')
  },
})

interface Told {
  readonly slot: string
  readonly created?: string | undefined
  readonly label?: string | undefined
  readonly opens?: boolean
  readonly damaged?: boolean
  readonly done?: 'added' | 'removed' | 'there already'
}

async function act(action: Action, repository: KeyedRepository, given: Options & { slot: string | undefined }): Promise<Told[]> {
  const slots = await import('../../repository/key-slots.ts')
  const label = given.label === undefined ? {} : { label: given.label }
  switch (action) {
    case 'list':
      return (await slots.slotsOf(repository)).map(({ key, ...rest }) => ({ slot: shortSlot(key), ...rest }))
    case 'add':
      return [{ slot: shortSlot(await slots.addPassphrase(repository, await newKey(given.newKey!), label)), done: 'added' }]
    case 'remove': {
      const key = await slots.findSlot(repository, given.slot!)
      await slots.removeSlot(repository, key)
      return [{ slot: shortSlot(key), done: 'removed' }]
    }
    case 'change': {
      const { slot, isNew, removed } = await slots.changePassphrase(repository, await newKey(given.newKey!), label)
      return [
        { slot: shortSlot(slot), done: isNew ? 'added' : 'there already' },
        ...removed.map(key => ({ slot: shortSlot(key), done: 'removed' as const })),
      ]
    }
  }
}

async function newKey(reference: string) {
  if (reference !== '-') return readSecret(reference, '--new-key')
  const key = (await text(process.stdin)).trim()
  if (key === '') throw new Misuse('standard input has no key')
  return key
}
