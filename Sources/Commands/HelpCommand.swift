struct HelpCommand: Command {
    let spec = CommandSpec(
        name: "help", summary: "explain a command",
        operands: [.init(name: "COMMAND", isRequired: false)],
        options: [.help],
        description: ["Prints the same as `shadow-virt COMMAND --help`; without COMMAND, the list of commands."],
        examples: [.init("shadow-virt help protect", "All about protect")])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        guard let name = arguments.operands.first else {
            context.output.data(Help.general(context.table.commands.map(\.spec)))
            return ExitCode.ok
        }
        context.output.data(Help.text(try context.table.command(named: name).spec))
        return ExitCode.ok
    }
}
