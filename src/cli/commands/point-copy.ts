// stillpoint point copy: a restore point from one repository to another.

import { formatSize } from '../../base/units.ts'
import { verb } from '../define.ts'
import { interruptible } from '../interruptible.ts'
import { configOption, repositoryArgument, shortPoint, withRepository, type ConfigOption } from '../open-repository.ts'
import { print, printJson } from '../output.ts'
import { findPointKey, pointArgument } from '../point-name.ts'
import { Progress } from '../progress.ts'

export const copyVerb = verb<{ repository: string; point: string; other: string }, ConfigOption>({
  name: 'copy',
  summary: 'copy a restore point to another repository',
  details:
    'It keeps its name there, and one that is there is left alone, so a copy that was interrupted is just run again. What the other repository has is not stored again, and where it has an earlier copy only what changed since is read. Each repository has its own key.',
  arguments: { ...repositoryArgument, ...pointArgument, '<other>': 'where to: the name of another repository' },
  options: [configOption()],
  namesDaemon: false,
  examples: [['stillpoint point copy local db/latest offsite', 'every night, after the backup']],
  run: ({ args, options, json }) =>
    withRepository(args.repository, options, from =>
      withRepository(args.other, options, to =>
        interruptible(async signal => {
          const key = await findPointKey(from, args.point)
          const { copyPoint } = await import('../../push/copy-point.ts')
          const work = copyPoint({ from, key, to, signal })
          using shown = new Progress(`copying ${shortPoint(key)}`, 0)
          let step = await work.next()
          for (; !step.done; step = await work.next()) shown.at(step.value.done, step.value.total)
          const { key: made, new: isNew, since, read, added, stored } = step.value
          const point = shortPoint(made)
          const before = since === undefined ? undefined : shortPoint(since)
          if (json) return printJson({ point, repository: args.other, new: isNew, since: before, read, added, stored })
          if (!isNew) return print(`${point}: ${args.other} has it already\n`)
          print(
            `${point}: copied to ${args.other}; ${formatSize(read)} read${before ? `, what changed since ${before}` : ''}, ${formatSize(added)} new there, ${formatSize(stored)} stored\n`,
          )
        }),
      ),
    ),
})
