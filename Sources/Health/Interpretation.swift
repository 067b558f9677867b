import Foundation

/// What is good and what is bad: rules for FreeIPMI (freeipmi_interpret_sensor.conf(5), freeipmi_interpret_sel.conf(5)).
enum Interpretation {
    /// Where the administrator's own rules are.
    static let folder = "/etc/freeipmi"

    /// For sensors: ours, then the administrator's, which so come before them.
    /// FreeIPMI calls a value beyond its non-critical threshold nominal; the vendor who set that threshold thought otherwise.
    static var sensors: [String] {
        ["""
        IPMI_Threshold_Sensor_At_Or_Below_Lower_Non_Critical_Threshold Warning
        IPMI_Threshold_Sensor_At_Or_Above_Upper_Non_Critical_Threshold Warning

        """] + own("freeipmi_interpret_sensor.conf")
    }

    /// For the log.
    static var log: [String] { own("freeipmi_interpret_sel.conf") }

    private static func own(_ name: String) -> [String] {
        guard let data = FileManager.default.contents(atPath: "\(folder)/\(name)") else { return [] }
        let rules = withoutComments(String(decoding: data, as: UTF8.self))
        return rules.isEmpty ? [] : [rules]
    }

    /// As they are installed, these files are comments only, 60 KB each; FreeIPMI reads them byte by byte, one system call each, which took
    /// four fifths of a reading's time.
    static func withoutComments(_ text: String) -> String {
        var kept: [Substring] = []
        for line in text.split(separator: "\n" as Character, omittingEmptySubsequences: false) {
            let content = line.drop { $0 == " " || $0 == "\t" }
            // A line that goes on, or that another goes on in, means what it meant.
            let isPart = kept.last?.hasSuffix("\\") == true || line.hasSuffix("\\")
            if isPart || !(content.isEmpty || content.hasPrefix("#")) { kept.append(line) }
        }
        return kept.isEmpty ? "" : kept.joined(separator: "\n") + "\n"
    }
}
