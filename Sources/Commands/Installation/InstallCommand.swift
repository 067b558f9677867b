import ControlProtocol
import Foundation
import Glibc

struct InstallCommand: Command {
    let spec = CommandSpec(
        name: "install", summary: "install program, unit, hook, completion and manual",
        options: [.root, .prefix, .only, .program,
                  .init("force", help: "Overwrite files that this command did not write, or that were changed since."),
                  .dryRun, .quiet, .help],
        description: [
            "Installs this program with everything around it: libvirt's hook and the small program that it runs, the systemd unit, bash completion, the manual "
                + "pages, the lines that AppArmor needs for QEMU's sockets and for the hook (where libvirt's profiles are installed), and an example "
                + "configuration when there is none. "
                + "Prints what it did, a line a file.",
            "It may be repeated, and does the same as an upgrade. It starts nothing and restarts nothing; it says what is left to do. A file that it did not write, "
                + "or that somebody changed since, is not overwritten: then nothing is changed at all.",
            "Where a package of the distribution brought shadow-virt, this has been done already.",
        ],
        examples: [
            .init("sudo .build/release/shadow-virt install", "From a build, into /usr/local"),
            .init("shadow-virt install --dry-run", "What would be done"),
            .init("shadow-virt install --root /tmp/package --prefix /usr", "For a package"),
        ])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let options = try InstallationOptions(arguments, context, command: spec.name)
        try options.requireHookProgram()
        let files = try options.files()
        let hadHooks = Self.hasHooks(options.root)
        var installer = try Installer(root: options.root, isDryRun: arguments.has("dry-run"), overwrites: arguments.has("force"))
        do {
            defer { context.output.data(installer.report.joined(separator: "\n")) }
            try withAdviceOnRights { try installer.install(files) }
        }
        let programIsThere = access(options.layout.hookProgram, X_OK) == 0 || arguments.has("dry-run") && options.parts.contains(.program)
        for step in steps(options, files, hadHooks: hadHooks, hasHookProgram: programIsThere) { context.remark(step, arguments) }
        return ExitCode.ok
    }

    private func steps(_ options: InstallationOptions, _ files: [InstallationFile], hadHooks: Bool, hasHookProgram: Bool) -> [String] {
        guard options.isThisSystem else { return [] }
        var steps: [String] = []
        if options.parts.contains(.hook), !hadHooks {
            steps.append("libvirt had no hook until now, and looks for them when its daemon starts or reloads: "
                + "run `systemctl reload libvirtd` (or `virtqemud`) once; guests run on")
        }
        if options.parts.contains(.unit) { steps.append("Start the service: `systemctl daemon-reload && systemctl enable --now shadow-virt`") }
        if options.parts.contains(.hook), !hasHookProgram {
            steps.append("libvirt's hook does nothing yet: there is no \(options.layout.hookProgram), which it runs")
        }
        let profiles = files.filter { $0.part == .apparmor }.compactMap(\.includedBy)
        if !profiles.isEmpty { steps.append("AppArmor: guests that run already keep their profile until they are started again") }
        for profile in profiles where InstallationLayout.appArmorOfDaemons.contains(where: profile.hasSuffix) {
            steps.append("AppArmor: libvirt's daemon may run the hook's program from now on when its profile is read again: `apparmor_parser -r \(profile)`")
        }
        return steps
    }

    /// Whether libvirt's daemon runs hooks of the QEMU driver: it looks once whether there is any, and at all of them at each call.
    static func hasHooks(_ root: String) -> Bool {
        let folder = root + InstallationLayout.hookFolder
        let names = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
        return (["/etc/libvirt/hooks/qemu"].map { root + $0 } + names.map { "\(folder)/\($0)" }).contains { access($0, X_OK) == 0 }
    }
}
