// The man page stillpoint(1), from the definitions of the commands. Its macros are those of man(7).

import { commonOptions, type Example, type Noun, type Verb } from '../define.ts'
import { environment, exitCodeMeanings } from '../exit-codes.ts'
import { allVerbs, sentence, type NamedVerb } from './all-verbs.ts'

export function manPage(commands: readonly (Noun | Verb)[], version: string): string {
  const sections = [
    `.\\" Written by npm run reference; a change belongs into src/cli.`,
    `.TH STILLPOINT 1 "" "stillpoint ${version}" "User Commands"`,
    '.SH NAME',
    'stillpoint \\- backups of block devices: disks over NBD, checkpoints, point\\-in\\-time sessions',
    '.SH SYNOPSIS',
    ...allVerbs(commands).flatMap(({ usage }, index) => [
      ...(index > 0 ? ['.br'] : []),
      `${bold('stillpoint')} ${text(usage.slice(11))}`,
    ]),
    '.SH DESCRIPTION',
    text(
      'The daemon serves disks over NBD, remembers every write in dirty bitmaps, and makes point-in-time backups of several disks at one instant while guests go on writing. All other commands talk to a daemon that runs, over its control socket.',
    ),
    '.PP',
    text('Standard output has the answer and nothing else. Errors are on standard error, and say what to do next.'),
    '.SH OPTIONS',
    'These may stand before the command, too:',
    ...commonOptions().flatMap(({ flags, description }) => item(flags, description)),
    ...item('-h, --help', 'show help, with examples, of the program or of a command'),
    ...item('-V, --version', 'say which version this is'),
    '.SH COMMANDS',
    ...allVerbs(commands).flatMap(section),
    '.SH EXIT STATUS',
    ...exitCodeMeanings.flatMap(([code, meaning]) => item(String(code), meaning)),
    '.SH ENVIRONMENT',
    ...environment.flatMap(([name, meaning]) => item(name, meaning)),
    '.SH FILES',
    ...item('/etc/stillpoint/stillpoint.yaml', "the daemon's configuration, where --config names no other"),
    ...item('/run/stillpoint/control.sock', "the daemon's control socket, where its configuration names no other"),
    '.SH SEE ALSO',
    ['nbdcopy', 'nbdinfo', 'qemu-img', 'qemu-storage-daemon'].map(name => `.BR ${text(name)} (1)`).join(' ,\n'),
  ]
  return `${sections.join('\n')}\n`
}

function section({ usage, verb }: NamedVerb): string[] {
  const { summary, details, arguments: args = {}, options = [], examples } = verb
  return [
    `.SS ${text(usage.slice('stillpoint '.length))}`,
    text(sentence(summary)),
    ...(details ? [text(details)] : []),
    ...Object.entries(args).flatMap(([name, what]) => item(name, what)),
    ...options
      .filter(({ hidden }) => !hidden)
      .flatMap(({ flags, description, defaultValue }) =>
        item(flags, typeof defaultValue === 'string' ? `${description} (default: ${defaultValue})` : description),
      ),
    ...examples.flatMap(exampleLines),
  ]
}

const exampleLines = ([command, what]: Example) => [
  '.PP',
  `${text(`${what[0]!.toUpperCase()}${what.slice(1)}`)}:`,
  '.PP',
  '.in +4n',
  '.nf',
  text(command),
  '.fi',
  '.in',
]

const item = (term: string, what: string) => ['.TP', bold(term), text(what)]

const bold = (words: string) => `\\fB${text(words)}\\fR`

/** Characters that mean something to roff, and a hyphen that can be copied. */
const text = (plain: string) =>
  plain
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll("'", '\\(aq')
    .replaceAll('`', '\\(ga')
    .replaceAll('^', '\\(ha')
    .replaceAll('~', '\\(ti')
    .replace(/^\./, '\\&.')
