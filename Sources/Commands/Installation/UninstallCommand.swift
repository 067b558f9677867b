import Configuration
import ControlProtocol
import Platform

struct UninstallCommand: Command {
    let spec = CommandSpec(
        name: "uninstall", summary: "remove what `install` installed",
        options: [.root, .prefix, .only, .program,
                  .init("purge", help: "Remove the configuration, the secret and all state as well: what is known of protections and replicas' journals."),
                  .init("force", help: "Go on while the service runs, and remove files that were changed since they were installed."),
                  .dryRun, .quiet, .help],
        description: [
            "Removes what `install` wrote and prints a line for each file. Configuration, secret and state stay, unless --purge says otherwise; replicas in "
                + "storage pools stay in any case.",
            "While the service runs it refuses: end that first, with `systemctl disable --now shadow-virt`. Guests run on, without protection.",
        ],
        examples: [
            .init("shadow-virt uninstall", "Configuration and state stay"),
            .init("shadow-virt uninstall --purge", "Nothing stays"),
        ])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let options = try InstallationOptions(arguments, context, command: spec.name)
        let isAll = arguments.value("only") == nil
        if options.isThisSystem, !arguments.has("force"), options.parts.contains(.unit) || options.parts.contains(.program) {
            try refuseWhileRunning(options.configuration)
        }
        var installer = try Installer(root: options.root, isDryRun: arguments.has("dry-run"), overwrites: arguments.has("force"))
        do {
            defer { context.output.data(installer.report.joined(separator: "\n")) }
            try withAdviceOnRights {
                try installer.uninstall(try options.files(), withManifest: isAll)
                if arguments.has("purge") { try installer.purge(Self.leftovers(options.configuration), folders: ["/etc/shadow-virt"]) }
            }
        }
        if options.isThisSystem, options.parts.contains(.unit) { context.remark("Tell systemd: `systemctl daemon-reload`", arguments) }
        return ExitCode.ok
    }

    private func refuseWhileRunning(_ configuration: ServiceConfiguration) throws {
        guard (try? ControlSocket.connect(path: configuration.controlSocket, deadline: .now)) != nil else { return }
        throw ControlFailure("The service runs (\(configuration.controlSocket))",
                             advice: "End it with `systemctl disable --now shadow-virt`; guests run on, without protection. Nothing was changed")
    }

    private static func leftovers(_ configuration: ServiceConfiguration) -> [String] {
        [ServiceConfiguration.defaultPath, configuration.secretFile, configuration.stateDirectory, configuration.runtimeDirectory]
    }
}
