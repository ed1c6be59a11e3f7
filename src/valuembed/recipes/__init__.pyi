from .cleaning import CLEANINGS as CLEANINGS
from .layers import (
    DEFAULT_LAYERS as DEFAULT_LAYERS,
    PRESETS as PRESETS,
    LayerSpec as LayerSpec,
    describe as describe,
    named_layers as named_layers,
    preset_for as preset_for,
    resolve_layers as resolve_layers,
)
from .method_specs import MethodRequest as MethodRequest, MethodSpec as MethodSpec, parse_methods as parse_methods
from .methods import (
    METHODS as METHODS,
    PURPOSES as PURPOSES,
    check_purpose as check_purpose,
    read_recipe as read_recipe,
    resolve_recipe as resolve_recipe,
    write_recipe as write_recipe,
)
from .recipe import (
    Alignment as Alignment,
    Recipe as Recipe,
    Signal as Signal,
    check_takes_parts as check_takes_parts,
    check_takes_tokens as check_takes_tokens,
    group_by_tokens as group_by_tokens,
    recipe_differences as recipe_differences,
)
from .templates import (
    TEMPLATES as TEMPLATES,
    Rendered as Rendered,
    Template as Template,
    TemplateSpec as TemplateSpec,
    parse_template as parse_template,
)
from .wording import LAST_LAYER as LAST_LAYER, RecipeWords as RecipeWords
