// stillpoint repo export and import: restore points in a portable archive, which any unzip opens.

import { Option } from 'commander'
import { formatSize } from '../../base/units.ts'
import { verb } from '../define.ts'
import { Misuse } from '../failure.ts'
import { plural } from '../format.ts'
import { interruptible } from '../interruptible.ts'
import { configOption, repositoryArgument, shortPoint, withRepository, type ConfigOption } from '../open-repository.ts'
import { note, print, printJson } from '../output.ts'
import { findPointKey, pointArgument } from '../point-name.ts'
import { Progress } from '../progress.ts'

export const exportVerb = verb<{ repository: string; 'point-and-file': string[] }, ConfigOption & { force?: boolean }>({
  name: 'export',
  summary: 'write restore points to a portable archive, a ZIP file',
  details:
    'Any unzip opens it, and `stillpoint restore` and `repo import` read it without the repository. It is NOT encrypted, whatever the repository is. What several of the restore points have in common is written once.',
  arguments: {
    ...repositoryArgument,
    '<point-and-file...>': `restore points, each ${pointArgument['<point>']}; and last the file to write`,
  },
  options: [configOption(), new Option('--force', 'replace a file of that name')],
  namesDaemon: false,
  examples: [
    ['stillpoint repo export offsite db/latest db.zip', 'the newest restore point, to take along'],
    ['stillpoint repo export offsite db/20261124 db/20261125 web/latest all.zip', 'several of them'],
  ],
  run: ({ args: { repository: name, 'point-and-file': words }, options, json }) => {
    const path = words.at(-1)!
    const names = words.slice(0, -1)
    if (names.length === 0) throw new Misuse(`say which restore points, and then the file: "repo export ${name} POINT FILE.zip"`)
    return withRepository(name, options, repository =>
      interruptible(async signal => {
        const points: string[] = []
        for (const one of names) points.push(await findPointKey(repository, one))
        const { exportPoints } = await import('../../archive/export-points.ts')
        const work = exportPoints({ repository, points, path, force: options.force ?? false, signal })
        using shown = new Progress('exporting', 0)
        let step = await work.next()
        for (; !step.done; step = await work.next()) shown.at(step.value.done, step.value.total)
        const { total: size, written: bytes } = step.value
        if (json) return printJson({ file: path, points: points.map(shortPoint), size, bytes })
        print(`${path}: ${plural(points.length, 'restore point')}, ${formatSize(size)} of disks in ${formatSize(bytes)}\n`)
        if (repository.file.encrypted) note(`'${path}' is not encrypted, as the repository is: who has it can read the disks.`)
      }),
    )
  },
})

export const importVerb = verb<{ file: string; repository: string }, ConfigOption & { point?: string }>({
  name: 'import',
  summary: 'bring the restore points of a portable archive into a repository',
  details:
    'They keep their names. One that the repository has is left alone, and what it has of the data is not stored again, so a run that was interrupted is just run again.',
  arguments: { '<file>': 'an archive that `repo export` wrote', ...repositoryArgument },
  options: [configOption(), new Option('--point <point>', 'only this one')],
  namesDaemon: false,
  examples: [['stillpoint repo import db.zip offsite', 'all that is in it']],
  run: ({ args: { file, repository: name }, options, json }) =>
    withRepository(name, options, repository =>
      interruptible(async signal => {
        const [{ Archive }, { importPoint }, { findArchived }] = await Promise.all([
          import('../../archive/archive.ts'),
          import('../../archive/import-points.ts'),
          import('../archived-point.ts'),
        ])
        await using archive = await Archive.open(file)
        const points = options.point === undefined ? archive.points : [findArchived(archive, options.point)]
        if (points.length === 0) note(`There are no restore points in '${file}'.`)
        for (const point of points) {
          using shown = new Progress(`importing ${shortPoint(point.key)}`, 0)
          const work = importPoint(archive, point, repository, signal)
          let step = await work.next()
          for (; !step.done; step = await work.next()) shown.at(step.value.done, step.value.total)
          const { key, new: isNew, added, stored } = step.value
          if (json) printJson({ point: shortPoint(key), new: isNew, added, stored })
          else
            print(
              `${shortPoint(key)}: ${isNew ? `imported; ${formatSize(added)} new, ${formatSize(stored)} stored` : 'is there already'}\n`,
            )
        }
      }),
    ),
})
