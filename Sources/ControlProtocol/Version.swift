/// The product's version, as `--version` and `status` show it.
public enum ProductVersion {
    public static let text = "0.1.0"
}
