import Glibc

HookProgram.limitTime()
HookProgram.run(CommandLine.arguments.dropFirst())
exit(0)
